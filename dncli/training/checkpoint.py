"""Checkpoints: one file of tensors and plain values, written whole or not at all, read without running code."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dndetr.console import UserError
from dndetr.data.coco import Categories
from dndetr.models.labels import holds_embeddings
from dndetr.training.values import Damaged, load_values, save_values

FORMAT = 2
NAMES = ("last.pt", "previous.pt", "best.pt")  # of the checkpoints of a run


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on after any step, and all that a detector needs to be used.

    No random state is kept: data and noise follow from (seed, epoch, image id), and every step begins by seeding the
    rest with (seed, step, process).
    """

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None  # the averaged weights, which are then the ones to use
    optimizer: dict[str, Any]
    scaler: dict[str, Any]  # of fp16 gradients, else empty
    epoch: int  # epochs done, evaluation included
    step: int  # steps done; those beyond `epoch` are of the next one, whose losses so far are in `begun`
    steps_per_epoch: int
    skipped: int  # steps that were left out since something was not finite
    begun: dict[str, Any]  # dndetr.training.epochs.Begun, empty between epochs
    best_ap: float | None
    config: dict[str, Any]  # the resolved settings, as plain types
    category_ids: list[int]  # of class 0 .. C-1 in the annotations
    category_names: list[str]
    data: dict[str, str]  # the digest of each split's annotation file
    format: int = FORMAT

    @property
    def weights(self) -> dict[str, Tensor]:
        """What to evaluate and predict with."""
        return self.model if self.ema is None else self.ema


def save_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Replace the file at `path`: it holds the old checkpoint or the new one at every moment, see `save_values`."""
    save_values(path, vars(checkpoint), previous)


def load_checkpoint(run_or_file: str | Path, prefer: str = "best.pt", *, trust: bool = False) -> Checkpoint:
    """Read a checkpoint file, or the one of a run folder: `prefer`, else the last.

    `trust` opens files that can run code. UserError says what is wrong, and which checkpoint beside it is whole.
    """
    path = find_checkpoint(Path(run_or_file), prefer)
    try:
        values, signed = load_values(path, trust=trust)
    except Damaged as error:
        raise Damaged(error.lines[0] + whole_neighbour(path)) from error
    fields = set(Checkpoint.__dataclass_fields__)
    if not isinstance(values, dict) or values.get("format") is None or "category_ids" not in values:
        raise UserError(f"{path}: not a dndetr checkpoint; weights of other tools cannot be used here")
    if values["format"] != FORMAT or set(values) != fields:
        raise UserError(f"{path}: checkpoint of format {values['format']}, this version of dndetr reads format {FORMAT}")
    if not signed and not trust:
        raise Damaged(
            f"{path}: has no SHA-256 at its end: it was damaged, or written by another tool, then --trust-pickle opens it"
            + whole_neighbour(path)
        )
    return Checkpoint(**values)


def whole_neighbour(path: Path) -> str:
    """What to take instead of a damaged checkpoint: the first whole one in its folder, if there is any."""
    for other in (path.with_name(name) for name in NAMES if name != path.name):
        with contextlib.suppress(UserError):
            if load_values(other)[1]:
                return f"; the last whole one is {other}"
    return ""


def find_checkpoint(path: Path, prefer: str) -> Path:
    """The file meant by a path that may be a run folder."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint or run folder")
        return path
    candidates = [path / "checkpoints" / name for name in (prefer, "last.pt")]
    found = [file for file in candidates if file.is_file()]
    if not found:
        beside = whole_neighbour(candidates[0])
        raise UserError(f"{path}: no checkpoint in this folder (looked for checkpoints/{prefer}){beside}")
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
        path = Path(source)
        beside = whole_neighbour(path / "checkpoints" / "last.pt" if path.is_dir() else path)
        raise UserError(
            f"{source}: weights of another architecture or number of classes{beside}; these do not fit:",
            *problems[:8],
            *rest,
        )
    model.load_state_dict(dict(weights))


# Tensors with a row for each class, the label table one more for the unknown. With labels.embeddings there are none.
BY_CLASS = re.compile(r"heads\.cls\.\d+\.(weight|bias)|label\.table\.weight")


def categories_of(checkpoint: Checkpoint) -> Categories:
    """The classes of a checkpoint; those of earlier versions may have one name twice."""
    return Categories.named(dict(zip(checkpoint.category_ids, checkpoint.category_names, strict=True)))


def for_classes(checkpoint: Checkpoint, categories: Categories, born: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint for a detector of other classes: rows go by name, new classes stay as in `born`.

    Tensors whose rows are of another width stay as they are, for load_weights to refuse. Embeddings of classes
    (labels.embeddings) are those of `born`: they were given, not learned.
    """
    theirs = categories_of(checkpoint)
    given = {key: tensor for key, tensor in born.items() if holds_embeddings(key)}
    known = [(source, row) for row, source in categories.shared(theirs).items()]
    if len(categories) == len(theirs) and known == [(row, row) for row in range(len(theirs))]:
        return {**checkpoint.weights, **given}
    weights = {}
    for key, tensor in {**checkpoint.weights, **given}.items():
        weights[key] = tensor
        rows_fit = key in born and 0 < tensor.dim() == born[key].dim() and tensor.shape[1:] == born[key].shape[1:]
        if rows_fit and BY_CLASS.fullmatch(key):
            rows = known + ([(len(theirs), len(categories))] if key.startswith("label.") else [])
            weights[key] = born[key].clone()
            for source, row in rows:
                weights[key][row] = tensor[source]
    return weights


def checkpoint_bytes(model: nn.Module, *, ema: bool) -> int:
    """The size of a checkpoint: the weights, their average, and the two moments of AdamW, with room for its frame."""
    weights = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return weights * (2 if ema else 1) + moments + 2**20
