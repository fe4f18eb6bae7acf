"""Trainings with faults in their way: killed at a chosen moment, or with a disk that refuses; and runs compared bit by bit."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import torch

from dndetr import cli
from dndetr.config import Config
from dndetr.console import UserError
from dndetr.resolve import from_tree, to_tree
from dndetr.training import values
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.learner import Learner
from dndetr.training.loop import train
from tests.training.tiny import resolved, tiny_config

ROOT = Path(__file__).parents[2]
STEPS = 3  # an epoch, of the 12 images that `exacting` wants


def exacting(root: str | Path, **settings) -> Config:
    """Settings in which everything takes part that a resumed run could get wrong."""
    few = {"epochs": 2, "drop_epoch": 1.5, "warmup_steps": 4, "ema": 0.5, "accumulate": 2, "save_steps": 2}
    config = tiny_config(root, **few | settings)
    return replace(config, host=replace(config.host, dropout=0.1))


@dataclass(frozen=True)
class Outcome:
    """How a training ended. An event is a step that was done, or something about to be done to a file of the run."""

    code: int  # of its exit, -9 where it was killed
    events: list[str]  # "step 3", "open metrics.csv", "rename checkpoints/last.pt", "fsync", ...; not the many of "write"
    output: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the `nth` event whose name contains `event`; the many of "write" only where that is asked for.

    "kill" is SIGKILL before it, "torn" SIGKILL in the middle of a "write" to a checkpoint, "full" makes it fail for want of
    room, "slow" makes every event from there on take a moment.
    """

    how: str
    event: str = ""
    nth: int = 1


class Trainings:
    """`with Trainings(folder) as trainings:` starts a process that imports everything once, and forks for each training."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> Trainings:
        command = [sys.executable, "-m", "tests.training.faults", str(self.folder)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # more do not survive a fork
        self.server = subprocess.Popen(
            command, cwd=ROOT, env=one_thread, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def __call__(self, config: Config | None, out: Path, fault: Fault | None = None, *, after: float | None = None, **how):
        """Train into `out` and return the Outcome. `how` are further arguments of `train`.

        SIGKILL comes `after` so many seconds, if any. Without settings it is the command `dndetr train --resume OUT`.
        """
        tree = None if config is None else to_tree(config)
        order = {"config": tree, "out": str(out), "fault": vars(fault) if fault else None, "after": after, "how": how}
        print(json.dumps(order), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        return Outcome(code, (self.folder / "events").read_text().splitlines(), (self.folder / "output").read_text())


def serve(folder: Path) -> None:
    """Fork for each order that comes in, and answer with the exit code."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        (folder / "events").write_text("")
        child = os.fork()
        if not child:
            os._exit(obey(order, folder))
        if order["after"] is not None:
            time.sleep(order["after"])
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def obey(order: dict[str, Any], folder: Path) -> int:
    """The child: a training with its fault. Returns the exit code."""
    with open(folder / "output", "w") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            watch(Path(order["out"]), folder / "events", Fault(**order["fault"]) if order["fault"] else None)
            if order["config"] is None:
                sys.argv = ["dndetr", "train", "--resume", order["out"]]
                cli.main()
            out = None if "resume" in order["how"] else order["out"]
            train(resolved(from_tree(order["config"])), out, **order["how"])
        except UserError as error:
            print(error)
            return error.code
        except SystemExit as stopped:
            return int(stopped.code)
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


def watch(run: Path, log: Path, fault: Fault | None) -> None:
    """Write down every event of this process, and let the fault happen at its own."""
    handle, seen = os.open(log, os.O_WRONLY | os.O_APPEND), 0

    def happens(event: str, torn: Callable[[], object] = lambda: None) -> None:
        nonlocal seen
        if event != "write":
            os.write(handle, f"{event}\n".encode())
        if fault is None or fault.event not in event or (event == "write" and fault.how != "slow" and fault.event != "write"):
            return
        seen += 1
        if fault.how == "slow" and seen >= fault.nth:
            time.sleep(2e-4)
        elif seen == fault.nth and fault.how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif seen == fault.nth and fault.how in ("kill", "torn"):
            if fault.how == "torn":
                torn()
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name: str, arguments: tuple) -> None:
        """What Python itself tells of files before it touches them."""
        if name not in TOUCHES:
            return
        path = arguments[1 if name in ("os.rename", "os.link") else 0]
        if isinstance(path, (str, Path)) and Path(path).is_relative_to(run) and (name != "open" or writes(*arguments[1:])):
            happens(f"{TOUCHES[name]} {Path(path).relative_to(run)}".removesuffix(f"-{os.getpid()}"))

    def fsync(file: int) -> None:
        happens("fsync")
        sync(file)

    def begin(self: values.Hashed, file: IO[bytes]) -> None:
        def write(block: bytes) -> int:
            happens("write", lambda: (file.write(bytes(block)[: len(block) // 2]), file.flush()))
            return file.write(block)

        begun(self, SimpleNamespace(write=write, flush=file.flush))

    def step(self: Learner, *arguments: object) -> object:
        losses = taken(self, *arguments)
        happens(f"step {self.step_count}")
        return losses

    sync, begun, taken = os.fsync, values.Hashed.__init__, Learner.step
    os.fsync, values.Hashed.__init__, Learner.step = fsync, begin, step
    sys.addaudithook(audit)


TOUCHES = {
    "open": "open", "os.rename": "rename", "os.link": "link", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir",
}  # fmt: skip


def writes(mode: str | None, flags: int) -> bool:
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def differences(ours: Path, theirs: Path, *, but: tuple[str, ...] = ()) -> list[str]:
    """In what the results of two runs differ, to the last bit; not in the time that they took, nor in settings of `but`."""
    found = []
    for what in (records, table, matches, detections):
        if what(ours) != what(theirs):
            found.append(what.__name__)
    for name in ("last.pt", "best.pt"):
        mine, other = (vars(load_checkpoint(run / "checkpoints" / name)) for run in (ours, theirs))
        for key in but:
            block, leaf = key.split(".")
            for checkpoint in (mine, other):
                del checkpoint["config"][block][leaf]
        found += [f"{name}: {key}" for key in mine if not same(timeless(mine[key]), timeless(other[key]))]
    found += [f"left over: {file}" for file in ours.rglob(".*") if not file.name.startswith(".dndetr-probe")]  # it is empty
    return found


TIMES = ("seconds", "data_wait", "waited")


def timeless(value: Any) -> Any:
    return {k: v for k, v in value.items() if k not in TIMES} if isinstance(value, dict) else value


def records(run: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def table(run: Path) -> list[dict[str, Any]]:
    with open(run / "metrics.csv", newline="") as file:
        return [timeless(row) for row in csv.DictReader(file)]


def matches(run: Path) -> dict[str, list[bytes]]:
    found = {}
    for file in sorted((run / "matches").iterdir()):
        with np.load(file) as arrays:
            found[file.name] = [arrays[name].tobytes() for name in arrays.files]
    return found


def detections(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "eval" / "detections.json").read_text())


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through all containers."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return a == b


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
