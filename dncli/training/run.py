"""The run folder: what a training leaves behind, and how it is opened without losing what was there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dndetr.analysis.instability import Matches, load_matches, save_matches
from dndetr.console import UserError
from dndetr.files import nearest_folder, replace_text, writable
from dndetr.settings import dump
from dndetr.training.checkpoint import NAMES, Checkpoint, save_checkpoint
from dndetr.training.environment import environment

UNFINISHED = ".dndetr-unfinished"
NEXT_SETTINGS = ".config.next.yaml"  # to become config.yaml when the last checkpoint has them
CHECKPOINTS_AT_ONCE = 4  # last, previous, best, and the one being written
FOLDERS = ("checkpoints", "matches", "plots", "predictions", "eval")


@dataclass(frozen=True)
class Run:
    """Where everything of one run lies."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one, should that be damaged."""
        return self.path / "checkpoints" / "previous.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    def kept(self, epoch: int) -> Path:
        """A checkpoint that stays, see train.keep_every."""
        return self.path / "checkpoints" / f"epoch_{epoch:03d}.pt"

    @property
    def nonfinite(self) -> Path:
        """Batches whose loss or gradient was not finite."""
        return self.path / "nonfinite"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def predictions(self) -> Path:
        """Pictures of the best epoch."""
        return self.path / "predictions"

    @property
    def detections(self) -> Path:
        """COCO results of the best epoch."""
        return self.path / "eval" / "detections.json"

    @property
    def holdout(self) -> Path:
        """The ids of the images that data.holdout left for training, and those that it took for validation."""
        return self.path / "holdout.json"

    def writing(self) -> AbstractContextManager[None]:
        """What cannot be written becomes a UserError. The checkpoints that were there are there still."""
        return writable(self.path, f"make room, then go on with: dndetr train --resume {self.path}")

    def matches(self, epoch: int) -> Path:
        return self.path / "matches" / f"epoch_{epoch:03d}.npz"

    def records(self) -> list[dict[str, Any]]:
        """The metrics of every epoch so far."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()] if self.metrics.exists() else []

    def record(self, metrics: dict[str, Any]) -> None:
        """Add one epoch to metrics.jsonl and metrics.csv."""
        write_records(self, [*self.records(), metrics])

    def save_matches(self, epoch: int, matches: Matches) -> None:
        save_matches(self.matches(epoch), matches)

    def previous_matches(self, epoch: int) -> Matches | None:
        """The matches of the last evaluation before `epoch`."""
        earlier = [self.matches(e) for e in range(epoch - 1, 0, -1) if self.matches(e).exists()]
        return load_matches(earlier[0]) if earlier else None


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything, unless it is a run that may be overwritten. Nothing is changed."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give a folder with --out")
    if not path.exists() or not any(path.iterdir()) or (path / UNFINISHED).exists():
        return
    if not overwrite:
        raise UserError(
            f"{path}: not empty; choose another folder with --out, go on with --resume {path}, or replace it with --overwrite"
        )
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: does not look like a run (no config.yaml), so --overwrite does not remove it")


def create_run(path: Path, tree: dict[str, Any], checkpoint: Checkpoint, *, room: int, overwrite: bool) -> Run:
    """Make the folder with its settings, environment and first checkpoint, sure that `room` bytes of them will fit.

    Until then an older run in the same place stays untouched. config.yaml comes last: where it is, there is something to
    resume. A folder that was left half made is known by its mark, and may be used again.
    """
    check_free(path, overwrite=overwrite)
    probe(nearest_folder(path), room)
    run = Run(path)
    with writable(path, "choose another folder with --out"):
        path.mkdir(parents=True, exist_ok=True)
        (path / UNFINISHED).touch()
        (path / "config.yaml").unlink(missing_ok=True)  # from here on there is nothing to resume
        for old in path.iterdir():
            if old.name != UNFINISHED:
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        for folder in FOLDERS:
            (path / folder).mkdir()
        replace_text(path / "env.json", json.dumps(environment(), indent=2) + "\n")
        save_checkpoint(run.last, checkpoint)
        replace_text(path / "config.yaml", dump(tree))
        (path / UNFINISHED).unlink()
    return run


def reopen_run(path: Path, tree: dict[str, Any], checkpoint: Checkpoint, *, room: int) -> Run:
    """Open a run to go on from `checkpoint`: what was recorded later belongs to no checkpoint and is dropped.

    The checkpoint, be it an older one or with other settings now, becomes the last one first.
    """
    run, epoch = Run(path), checkpoint.epoch
    replaced = [run.last.with_name(name).stat() for name in NAMES if run.last.with_name(name).exists()]
    kept = {file.st_ino: file.st_size for file in replaced}  # names of one file count once
    probe(path, max(room - sum(kept.values()), room // CHECKPOINTS_AT_ONCE))
    with writable(path):
        replace_text(path / NEXT_SETTINGS, dump(tree))
        save_checkpoint(run.last, replace(checkpoint, config=tree))
        (path / UNFINISHED).unlink(missing_ok=True)  # all that was left to do was to take the mark away
        for folder in FOLDERS:
            (path / folder).mkdir(exist_ok=True)
        os.replace(path / NEXT_SETTINGS, path / "config.yaml")
        write_records(run, [r for r in run.records() if r["epoch"] <= epoch])
        for file in (*(path / "matches").glob("epoch_*.npz"), *(path / "checkpoints").glob("epoch_*.pt")):
            if int(file.stem.removeprefix("epoch_")) > epoch:
                file.unlink()
    return run


def probe(folder: Path, room: int) -> None:
    """Write and remove `room` bytes, so that a full disk or a read-only folder is found before the first epoch."""
    file = folder / f".dndetr-probe-{os.getpid()}"
    block = os.urandom(2**20)
    try:
        with open(file, "wb") as handle:
            with contextlib.suppress(OSError):  # where open files may be removed, not even a kill leaves it behind
                file.unlink()
            for start in range(0, room, len(block)):
                handle.write(block[: room - start])
    except OSError as error:
        raise UserError(
            f"{folder}: cannot hold the run's checkpoints ({room / 2**20:.0f} MiB): {error.strerror or error}; "
            "make room or choose another folder with --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be written it cannot be removed either
            file.unlink()


def write_records(run: Run, records: list[dict[str, Any]]) -> None:
    """metrics.jsonl and metrics.csv, each replaced whole."""
    replace_text(run.metrics, "".join(json.dumps(record) + "\n" for record in records))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(dict.fromkeys(name for record in records for name in record)))
    writer.writeheader()
    writer.writerows(records)
    replace_text(run.path / "metrics.csv", table.getvalue())
