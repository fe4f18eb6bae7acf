"""Runs a function in several processes as torchrun would start them, without the seconds that each one's imports take.

A server with everything imported is started once; it has computed nothing, so that its forks may compute anything.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

GUARD = 120  # seconds after which a process is said to hang: many times what any of them needs
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # as the README has it
MODULES = ("dndetr.cli", "dndetr.training.loop", "dndetr.training.commands", "dndetr.training.incidents", "torch._dynamo")


def run(
    folder: Path,
    world: int,
    function: Callable[..., Any],
    *args: Any,
    ranks: Sequence[int] | None = None,
    frozen: int = -1,
    first_ends_all: bool = False,
) -> list[SimpleNamespace]:
    """Run `function(*args)` in `world` processes; of each the exit code and what it wrote: (code, out, err).

    `ranks` are those that are started at all. The process `frozen` is expected to stop itself, and killed when the others
    have ended. With `first_ends_all` the others receive SIGTERM when the first one has ended, as from torchrun. `function`
    must be importable.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES))
    port = free_port()
    ranks = range(world) if ranks is None else ranks
    files = [folder / f"process_{rank}" for rank in ranks]
    processes = [
        context.Process(target=enter, args=(function, args, rank, world, port, str(file)))
        for rank, file in zip(ranks, files, strict=True)
    ]
    for process in processes:
        process.start()
    try:
        for rank, process in zip(ranks, processes, strict=True):
            if rank != frozen:
                process.join(GUARD)
            if first_ends_all and not process.is_alive():
                for other in processes:
                    other.terminate()
        hanging = [rank for rank, process in zip(ranks, processes, strict=True) if process.is_alive() and rank != frozen]
    finally:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
    ended = [
        SimpleNamespace(code=process.exitcode, out=Path(f"{file}.out").read_text(), err=Path(f"{file}.err").read_text())
        for process, file in zip(processes, files, strict=True)
    ]
    if hanging:
        pytest.fail(f"processes {hanging} hang: {ended}")
    return ended


def enter(function: Callable[..., Any], args: Sequence[Any], rank: int, world: int, port: int, file: str) -> None:
    """What a new process does: its output goes to files, and it finds the environment that torchrun makes."""
    import torch

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{file}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    function(*args)


def command(*arguments: str) -> None:
    """The command line `dndetr ...` in this process, which it ends."""
    from dndetr import cli

    sys.argv = ["dndetr", *map(str, arguments)]
    cli.main()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
