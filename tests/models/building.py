"""Asking for the operator in processes of their own, since a process can load a library only once.

They are forked from a server that has imported torch and nothing of ours, so each costs little.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dndetr.models import deformable, native
from dndetr.models.deformable import ms_deform_attn
from tests.models.sampling import check, make

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "torchvision", "setuptools"])


class Answer(NamedTuple):
    why: tuple[str, str] | None  # what native.missing says of the CPU
    taken: bool  # whether the operator did the work
    lines: list[str]  # what the logger said
    printed: str  # on either stream, by this process or a compiler


def ask() -> tuple[tuple[str, str] | None, bool]:
    """Use the operator, and hold the result to what is right whoever computed it."""
    why = native.missing("cpu")
    taken = True

    def torch_version(*inputs):
        nonlocal taken
        taken = False
        return original(*inputs)

    original, deformable.ms_deform_attn_torch = deformable.ms_deform_attn_torch, torch_version
    check(ms_deform_attn, make([(3, 4), (2, 2)]))
    return why, taken


def answer(question: Callable[[], tuple], cache: Path, env: dict[str, str], at_once, pipe) -> None:
    """In a process of its own."""
    os.setsid()  # to be killed with all that it starts
    os.environ.update(env, DNDETR_CACHE=str(cache))
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")
    logging.getLogger("dndetr").addHandler(handler)
    logging.getLogger("dndetr").setLevel(logging.INFO)
    with tempfile.TemporaryFile() as printed:
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
        at_once.wait(100)
        try:
            found = question()
        except BaseException:  # pytest's own ones too
            pipe.send(traceback.format_exc())
            return
        sys.stdout.flush()
        sys.stderr.flush()
        printed.seek(0)
        pipe.send(Answer(*found, lines, printed.read().decode()))


@contextlib.contextmanager
def started(question: Callable[[], tuple], cache: Path, count: int = 1, **env: str) -> Iterator[list]:
    """Processes that ask at once, and the pipes of their answers."""
    at_once = processes.Barrier(count)
    pairs = []
    for _ in range(count):
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(target=answer, args=(question, cache, env, at_once, there), daemon=True)
        process.start()
        there.close()
        pairs.append((process, here))
    try:
        yield pairs
    finally:
        for process, _ in pairs:
            if process.exitcode != 0:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.join()


def answers(cache: Path, count: int = 1, question: Callable[[], tuple] = ask, **env: str) -> list[Answer]:
    with started(question, cache, count, **env) as pairs:
        found = []
        for process, pipe in pairs:
            try:
                found.append(pipe.recv())
            except EOFError:
                process.join()
                pytest.fail(f"the process died, exit code {process.exitcode}")
        for one in found:
            assert isinstance(one, Answer), one
        return found


def files(folder: Path) -> list[str]:
    """Without the folder of a library itself, whose name is a digest."""
    return sorted(path.relative_to(folder).as_posix().partition("/")[2] for path in folder.rglob("*") if path.is_file())


def starting(lines: list[str], beginning: str) -> list[str]:
    return [line for line in lines if line.startswith(beginning)]


def script(path: Path, *lines: str) -> str:
    """A compiler. PyTorch and the digest ask it for its version first."""
    version = 'case "$*" in *--version*|-v) echo "gcc version 12.2.0 of these tests"; exit;; esac'
    path.write_text("\n".join(("#!/bin/sh", version, *lines)) + "\n")
    path.chmod(0o755)
    return str(path)
