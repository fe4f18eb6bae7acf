"""Going on with a run: which one, and whether its settings and its data are still its own."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.resolve import from_tree, leaves, load_preset, to_tree
from dndetr.schema import known_keys
from dndetr.settings import is_among
from dndetr.training.checkpoint import NAMES, Checkpoint, categories_of, load_checkpoint
from dndetr.training.environment import launch
from dndetr.training.prepare import Data
from dndetr.training.run import NEXT_SETTINGS

# What may differ from the checkpoint without being asked for: what changes no result, and how long the run is.
FREE = (
    "train.epochs", "train.device", "train.save_steps", "train.keep_every", "train.skip_nonfinite", "train.timeout",
    "data.workers", "eval.counter", "op",
    "data.root", "data.train", "data.val", "data.images",  # that the data are the same is told by their digests
)  # fmt: skip
DATASET = "dataset"  # the word of --allow-change for other annotations


def run_folder(path: str | Path) -> Path:
    """The run that `--resume` means: a run folder, or one of the checkpoints in it."""
    path = Path(path)
    folder = path.parent.parent if path.name in NAMES and path.parent.name == "checkpoints" else path
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{path}: not a run folder (no config.yaml in it), so there is nothing to resume")
    return folder


def settings_file(path: str | Path) -> Path:
    """The settings of the run that `--resume` means. A change that was cut off is ended: those of the last checkpoint hold."""
    folder = run_folder(path)
    pending, settled = folder / NEXT_SETTINGS, folder / "config.yaml"
    with contextlib.suppress(FileNotFoundError):  # of several processes one does it
        if pending.exists():
            changed = load_checkpoint(folder, prefer="last.pt").config == load_preset(pending).tree
            os.replace(pending, settled) if changed else pending.unlink()
    return settled


def restarted(path: Path) -> bool:
    """Whether torchrun has started this training again (--max-restarts) after it had begun the run in `path`."""
    if not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) or not (path / "config.yaml").is_file():
        return False
    try:
        return json.loads((path / "env.json").read_text())["launch"] == launch()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_allowed(allowed: Sequence[str]) -> None:
    """Refuse words of --allow-change that are no setting."""
    known = known_keys()
    wrong = [key for key in allowed if key != DATASET and not any(is_among(k, [key]) for k in known)]
    if wrong:
        raise UserError(f"--allow-change {', '.join(wrong)}: not a setting, a block of settings, or {DATASET}")


def check_settings(run: str | Path, checkpoint: Checkpoint, config: Config, allowed: Sequence[str] = ()) -> None:
    """Refuse to go on with other settings, all differences at once, or with fewer epochs than are done."""
    before = leaves(to_tree(from_tree(checkpoint.config, str(run))))  # settings that are newer than the run have defaults
    now = leaves(to_tree(config))
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in differing if not is_among(key, (*FREE, *allowed))]
    if changed:
        raise UserError(
            f"{run}: --resume goes on with the settings of the run; these differ (--init-from takes its weights only, "
            "--allow-change KEY admits one):",
            *(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed),
        )
    if checkpoint.epoch > config.train.epochs:
        raise UserError(f"{run}: {checkpoint.epoch} epochs are done, more than train.epochs, {config.train.epochs}")


def with_range_of(checkpoint: Checkpoint, config: Config) -> Config:
    """The settings to go on with: for data.range=auto the checkpoint has what its training images had shown."""
    found = checkpoint.config["data"].get("range", "auto")
    return replace(config, data=replace(config.data, range=found)) if config.data.range == "auto" else config


def check_data(run: str | Path, checkpoint: Checkpoint, data: Data, allowed: Sequence[str] = ()) -> None:
    """Refuse other annotations under the same path, and other classes in any case."""
    if data.categories != categories_of(checkpoint):
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
