"""Going on with a run: whether its settings and its data are still its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dncli.config import Config
from dncli.console import UserError
from dncli.presets import leaves, load_preset, to_tree
from dncli.schema import known_keys
from dncli.settings import is_inside
from dncli.training.checkpoint import NAMES, Checkpoint, load_checkpoint
from dncli.training.prepare import Data
from dncli.training.run import NEXT_SETTINGS

# What may differ from the checkpoint without being asked for: what changes no result, and how long the run is.
FREE = (
    "train.epochs", "train.device", "train.save_steps", "train.skip_nonfinite", "train.timeout", "data.workers",
    "eval.counter", "op",
)  # fmt: skip
DATASET = "dataset"  # the word of --allow-change for other annotations


def run_folder(path: str | Path) -> Path:
    """The run that `--resume` means: a run folder, or one of the checkpoints in it."""
    path = Path(path)
    folder = path.parent.parent if path.name in NAMES and path.parent.name == "checkpoints" else path
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{path}: not a run folder (no config.yaml in it), so there is nothing to resume")
    with contextlib.suppress(FileNotFoundError):  # of several processes one does it
        settle(folder)
    return folder


def settle(folder: Path) -> None:
    """End a change of settings that was cut off: they are those of the last checkpoint."""
    pending = folder / NEXT_SETTINGS
    if pending.exists():
        changed = load_checkpoint(folder, prefer="last.pt").config == load_preset(pending).tree
        os.replace(pending, folder / "config.yaml") if changed else pending.unlink()


def check_allowed(allowed: Sequence[str]) -> None:
    """Refuse words of --allow-change that are no setting."""
    known = known_keys()
    wrong = [key for key in allowed if key != DATASET and not any(key == k or is_inside(k, key) for k in known)]
    if wrong:
        raise UserError(f"--allow-change {', '.join(wrong)}: not a setting, a block of settings, or {DATASET}")


def check_settings(run: str | Path, checkpoint: Checkpoint, config: Config, allowed: Sequence[str] = ()) -> None:
    """Refuse to go on with other settings, all differences at once, or past the last epoch."""
    before, now = leaves(checkpoint.config), leaves(to_tree(config))
    free = (*FREE, *allowed)
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == f or is_inside(key, f) for f in free)
    ]
    if changed:
        raise UserError(
            f"{run}: --resume goes on with the settings of the run; these differ (--init-from takes its weights only, "
            "--allow-change KEY admits one):",
            *(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed),
        )
    if checkpoint.epoch >= config.train.epochs:
        raise UserError(f"{run}: all {checkpoint.epoch} epochs are done; raise train.epochs to go on")


def check_data(run: str | Path, checkpoint: Checkpoint, data: Data, allowed: Sequence[str] = ()) -> None:
    """Refuse other annotations under the same path, and other classes in any case."""
    if list(data.categories.ids) != checkpoint.category_ids or list(data.categories.names) != checkpoint.category_names:
        raise UserError(f"{run}: its dataset had other categories than {data.train.annotation_file} has now; see --init-from")
    splits = {"train": data.train, "val": data.validation.split}
    changed = [str(splits[name].annotation_file) for name, digest in data.digests.items() if checkpoint.data[name] != digest]
    if changed and DATASET not in allowed:
        raise UserError(
            f"{run}: {' and '.join(changed)} changed since the run began (another SHA-256); bring the old file back, or go on "
            f"with --allow-change {DATASET}"
        )


def position(checkpoint: Checkpoint, steps_per_epoch: int) -> Checkpoint:
    """The checkpoint for epochs of so many steps: where they had another number, the epoch that it stands in begins anew."""
    if checkpoint.steps_per_epoch == steps_per_epoch:
        return checkpoint
    return replace(checkpoint, step=checkpoint.epoch * steps_per_epoch, steps_per_epoch=steps_per_epoch, begun={})
