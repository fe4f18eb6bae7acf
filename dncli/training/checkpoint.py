"""Checkpoints: one file of tensors and plain values, written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dncli.console import UserError

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on, and all that a detector needs to be used.

    No random state is kept: data and noise follow from (seed, epoch, image id), and every step begins by seeding the
    rest with (seed, step, process).
    """

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None  # the averaged weights, which are then the ones to use
    optimizer: dict[str, Any]
    scaler: dict[str, Any]  # of fp16 gradients, else empty
    epoch: int  # epochs done
    step: int  # optimiser steps done
    best_ap: float | None
    config: dict[str, Any]  # the resolved settings, as plain types
    category_ids: list[int]  # of class 0 .. C-1 in the annotations
    category_names: list[str]
    format: int = FORMAT

    @property
    def weights(self) -> dict[str, Tensor]:
        """What to evaluate and predict with."""
        return self.model if self.ema is None else self.ema


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file at `path`: whatever happens on the way, it holds the old checkpoint or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            torch.save(vars(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_checkpoint(run_or_file: str | Path, prefer: str = "best.pt") -> Checkpoint:
    """Read a checkpoint file, or the one of a run folder: `prefer`, else the last. UserError says what is wrong."""
    path = find_checkpoint(Path(run_or_file), prefer)
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of other tools' files
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a dndetr checkpoint: not a file of tensors and plain values, and it is not opened because "
            "anything else could run code"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not a whole checkpoint (empty, cut off, or another kind of file)") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    fields = set(Checkpoint.__dataclass_fields__)
    if not isinstance(values, dict) or values.get("format") is None or "category_ids" not in values:
        raise UserError(f"{path}: not a dndetr checkpoint; weights of other tools cannot be used here")
    if values["format"] != FORMAT or set(values) != fields:
        raise UserError(f"{path}: checkpoint of format {values['format']}, this version of dndetr reads format {FORMAT}")
    return Checkpoint(**values)


def find_checkpoint(path: Path, prefer: str) -> Path:
    """The file meant by a path that may be a run folder."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint or run folder")
        return path
    candidates = [path / "checkpoints" / name for name in (prefer, "last.pt")]
    found = [file for file in candidates if file.is_file()]
    if not found:
        raise UserError(f"{path}: no checkpoint in this folder (looked for checkpoints/{prefer})")
    return found[0]


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy `weights` into `model`; UserError names what does not fit, then nothing was copied."""
    mine = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in weights.items()}
    differing = [
        f"  {key}: {theirs[key]} there, {mine[key]} here" for key in mine.keys() & theirs.keys() if theirs[key] != mine[key]
    ]
    missing = [f"  {key}: not there" for key in mine.keys() - theirs.keys()]
    unknown = [f"  {key}: not here" for key in theirs.keys() - mine.keys()]
    problems = sorted(differing) + sorted(missing) + sorted(unknown)
    if problems:
        rest = [f"  ... and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise UserError(
            f"{source}: weights of another architecture or number of classes; these do not fit:", *problems[:8], *rest
        )
    model.load_state_dict(dict(weights))


BY_CLASS = ("heads.cls.", "label.table.")  # tensors with a row for each class, the label table one more for the unknown


def for_classes(checkpoint: Checkpoint, names: Sequence[str], born: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint for a detector of the classes `names`: rows go by name, new classes stay as in `born`.

    Tensors whose rows are of another width stay as they are, for load_weights to refuse.
    """
    theirs = checkpoint.category_names
    if list(names) == theirs:
        return dict(checkpoint.weights)
    known = [(theirs.index(name), row) for row, name in enumerate(names) if name in theirs]
    weights = {}
    for key, tensor in checkpoint.weights.items():
        weights[key] = tensor
        if key.startswith(BY_CLASS) and key in born and tensor.shape[1:] == born[key].shape[1:]:
            rows = known + ([(len(theirs), len(names))] if key.startswith("label.") else [])
            weights[key] = born[key].clone()
            for source, row in rows:
                weights[key][row] = tensor[source]
    return weights


def checkpoint_bytes(model: nn.Module, *, ema: bool) -> int:
    """The size of a checkpoint: the weights, their average, and the two moments of AdamW, with room for its frame."""
    weights = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return weights * (2 if ema else 1) + moments + 2**20
