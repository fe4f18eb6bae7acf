"""Training the runs of a study, some at once, each in a process of its own: `dndetr train`, new or resumed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from rich.progress import Progress

from dndetr.ablation.runs import Trial
from dndetr.console import UserError, console, say
from dndetr.files import replace_text, writable
from dndetr.resolve import to_yaml
from dndetr.training.report import progress_bar
from dndetr.training.signals import Stop, Stopped

LOOK = 0.2  # seconds between looks at the processes
COUNT = 2.0  # seconds between counts of their epochs
SPEED_OVER = 3600  # seconds over which the bar averages: it moves by epochs
LAST_LINES = 5  # of the log of a run that failed


class RunsFailed(UserError):
    """Some runs of a study ended with an error. The others are finished."""

    code = 1


@dataclass
class Child:
    """A training in a process of its own."""

    trial: Trial
    slot: int
    process: subprocess.Popen
    log: IO[bytes]

    def end(self) -> int:
        self.log.close()
        return self.process.returncode


def train_all(trials: Sequence[Trial], out: Path, *, jobs: int) -> None:
    """Train what is not finished, at most `jobs` runs at once, with the progress of the whole study on the console.

    Ctrl-C and SIGTERM let every training save and end, and raise Stopped. A run that fails does not stop the others;
    they raise RunsFailed at the end. Raises UserError where another process works in `out`.
    """
    with locked(out) as lock, Stop() as stop, progress_bar(console.is_terminal, SPEED_OVER) as bar:
        crew = Crew(trials, jobs, lock, bar)
        while crew.busy:
            crew.stop() if stop.number else crew.fill()
            time.sleep(LOOK)
            crew.look()
    if stop.number:
        raise Stopped(stop.number)
    if crew.failed:
        raise RunsFailed(*(line for trial, code in crew.failed for line in failure(trial, code)))


class Crew:
    """The trainings on their way, and those that wait."""

    def __init__(self, trials: Sequence[Trial], jobs: int, lock: int, bar: Progress):
        self.trials, self.jobs, self.lock, self.bar = trials, jobs, lock, bar
        finished = {trial.folder for trial in trials if trial.finished}
        self.waiting = deque(trial for trial in trials if trial.folder not in finished)
        self.at_work: dict[int, Child] = {}
        self.failed: list[tuple[Trial, int]] = []
        self.ended = len(finished)
        self.epochs = {trial.folder: len(trial.records()) for trial in trials}
        epochs, done = sum(trial.epochs for trial in trials), sum(self.epochs.values())
        self.task = bar.add_task("epochs", total=epochs, completed=done, status="")
        self.counted, self.stopping = 0.0, False

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.at_work)

    def fill(self) -> None:
        for slot in range(self.jobs):
            if self.waiting and slot not in self.at_work:
                self.at_work[slot] = start(self.waiting.popleft(), slot, self.jobs, self.lock)

    def stop(self) -> None:
        """Have every training save and end, the first time that it is called."""
        self.waiting.clear()
        for child in self.at_work.values() if not self.stopping else ():
            child.process.send_signal(signal.SIGTERM)
        self.stopping = True

    def look(self) -> None:
        """Take leave of the processes that ended, and show how far the others are."""
        for child in [child for child in self.at_work.values() if child.process.poll() is not None]:
            del self.at_work[child.slot]
            self.take_leave(child.trial, child.end())
        if time.monotonic() - self.counted > COUNT or not self.busy:
            self.counted = time.monotonic()
            self.epochs |= {child.trial.folder: len(child.trial.records()) for child in self.at_work.values()}
            status = f"{self.ended} of {len(self.trials)} runs done"
            self.bar.update(self.task, completed=sum(self.epochs.values()), status=status)

    def take_leave(self, trial: Trial, code: int) -> None:
        records = trial.records()
        self.epochs[trial.folder] = len(records)
        if code == 0 and trial.finished:
            self.ended += 1
            say(f"{trial.name}: {outcome(records)}  [{self.ended} of {len(self.trials)}]")
        elif self.stopping:
            say(f"{trial.name}: stopped after epoch {len(records)} of {trial.epochs}")
        else:
            self.failed.append((trial, code))
            say(f"{trial.name}: failed, see {trial.log}")


def start(trial: Trial, slot: int, jobs: int, lock: int) -> Child:
    """Begin a run, or go on with it. The process holds the study's lock as long as it lives, whatever becomes of this one."""
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    replace_text(trial.settings, to_yaml(trial.resolved) + "\n")
    log = open(trial.log, "ab")  # noqa: SIM115 - open as long as the process runs
    process = subprocess.Popen(
        train_command(trial),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=os.environ | surroundings(slot, jobs),
        process_group=0,  # a terminal's Ctrl-C reaches this process only, which passes it on once
        pass_fds=(lock,),
    )
    return Child(trial, slot, process, log)


def train_command(trial: Trial) -> list[str]:
    where = ["--resume" if trial.begun else "--out", str(trial.folder)]
    return [sys.executable, "-m", "dndetr", "train", "--preset", str(trial.settings), *where]


def surroundings(slot: int, jobs: int) -> dict[str, str]:
    """Its share of the cores, unless the user has chosen, and of the GPUs, for one of several processes."""
    variables = {}
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(threads(jobs))
    if jobs > 1 and torch.cuda.device_count() > 1:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
        variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return variables


def threads(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[int]:
    """The folder of a study for this process and those that it starts."""
    with writable(out):
        out.mkdir(parents=True, exist_ok=True)
        with open(out / ".lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                problem = "another study, or a training that it left behind, is at work here; wait for its end"
                raise UserError(f"{out}: {problem}, or choose another folder with --out") from error
            yield file.fileno()


def outcome(records: Sequence[dict]) -> str:
    """`AP 0.431 after 12 epochs, best 0.440, 3 min`."""
    measured = [record["ap"] for record in records if record["ap"] is not None]
    ap = f"AP {measured[-1]:.3f}, best {max(measured):.3f}" if measured else "no AP: nothing to find in the validation images"
    return f"{ap}, {len(records)} epochs, {duration(sum(record['seconds'] for record in records))}"


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def failure(trial: Trial, code: int) -> list[str]:
    said = trial.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return [
        f"{trial.name}: the training failed with exit code {code}; the end of {trial.log}:",
        *(f"  {line}" for line in said),
    ]
