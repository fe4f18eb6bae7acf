"""The runs that are analysed: their names, records, matches and checkpoints, and what their detectors answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dndetr.analysis.instability import Matches, load_matches
from dndetr.asking import Answer, build_ask
from dndetr.config import Config
from dndetr.console import UserError
from dndetr.training.checkpoint import NAMES, Checkpoint, load_checkpoint
from dndetr.training.distributed import choose_device
from dndetr.training.precision import check_precision, looking
from dndetr.training.prepare import Validation, categories_of, load_detector
from dndetr.training.report import Report
from dndetr.training.run import Run


def open_runs(paths: Sequence[str | Path]) -> dict[str, Run]:
    """Runs by the names that tables and legends give them. Raises UserError for folders that are no runs."""
    wrong = [
        f"{path}: not a run folder (no config.yaml in it)" for path in paths if not (Path(path) / "config.yaml").is_file()
    ]
    if wrong:
        raise UserError(*wrong)
    return dict(zip(short_names(paths), map(Run, paths), strict=True))


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """The last parts of each path, as few as tell them all apart. Raises UserError where two are the same."""
    whole = [Path(path).resolve().parts for path in paths]
    if len(set(whole)) < len(whole):
        raise UserError(f"{next(p for p, w in zip(paths, whole, strict=True) if whole.count(w) > 1)}: given twice")
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            break
    return names


def records_of(run: Run) -> list[dict[str, Any]]:
    """The metrics of every epoch. Raises UserError where there are none, or they cannot be read."""
    try:
        records = run.records()
    except (OSError, ValueError) as error:
        raise UserError(f"{run.metrics}: cannot be read: {error}") from error
    if not records:
        raise UserError(f"{run.path}: no epoch is recorded in its metrics.jsonl yet")
    return records


def stored_matches(run: Run) -> dict[int, Matches]:
    """By epoch, what the run's evaluations left behind."""
    return {epoch_of(file): load_matches(file) for file in sorted(run.matches(0).parent.glob("epoch_*.npz"), key=epoch_of)}


def checkpoints_by_epoch(run: Run, *, trust: bool = False) -> dict[int, Path]:
    """The checkpoints that were kept (train.keep_every), else those of a run in its ordinary course that end an epoch.

    The checkpoint before the last one is often of the last epoch as well: it was written before the evaluation.
    """
    kept = sorted(run.kept(0).parent.glob("epoch_*.pt"), key=epoch_of)
    if kept:
        return {epoch_of(file): file for file in kept}
    found = {}
    for file in (run.last.with_name(name) for name in NAMES):
        if file.is_file():
            checkpoint = load_checkpoint(file, trust=trust)
            epoch, further = divmod(checkpoint.step, checkpoint.steps_per_epoch)
            if epoch and not further:
                found[epoch] = file
    return dict(sorted(found.items()))


def epoch_of(file: Path) -> int:
    return int(file.stem.removeprefix("epoch_"))


@torch.inference_mode()
def answers(
    checkpoint: Checkpoint, config: Config, source: str | Path, validation: Validation, title: str
) -> Iterator[Answer]:
    """What the detector of a checkpoint says of the validation images, batch by batch, as an evaluation hears it."""
    device = choose_device(config.train.device)
    check_precision(config, device)
    model = load_detector(checkpoint, config, source, device)
    ask = build_ask(config, categories_of(checkpoint))
    for images, targets in Report().track(validation.batches, title):
        yield ask(looking(model, images, config.eval.precision, device), [target.to(device) for target in targets])
