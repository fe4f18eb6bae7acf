"""Files of class embeddings (labels.embeddings): a vector for each class name, read into the rows of a detector."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.data.coco import Categories
from dndetr.files import replace_bytes, writable
from dndetr.models.labels import holds_embeddings, unit
from dndetr.training.checkpoint import Checkpoint

SHOWN = 10  # missing names that an error lists


def class_embeddings(config: Config, names: Sequence[str], checkpoint: Checkpoint | None = None) -> Tensor | None:
    """(C, E) of a detector's classes: those in its checkpoint, for a new one those of labels.embeddings; None = learned."""
    if checkpoint is not None:
        return stored_embeddings(checkpoint.weights)
    file = config.labels.embeddings
    return None if file is None else read_embeddings(file, names)


def stored_embeddings(weights: Mapping[str, Tensor]) -> Tensor | None:
    """(C, E) of the detector that has these weights; None where its classes are learned."""
    return next((tensor for key, tensor in weights.items() if holds_embeddings(key)), None)


def for_categories(checkpoint: Checkpoint, categories: Categories, file: str | Path) -> Checkpoint:
    """The same detector for other classes, seen in training or not, which `file` has vectors of (zero-shot, Sec. 5.7.2).

    All that was learned stays. Raises UserError where the classes of the detector were learned, or vectors do not fit.
    """
    before = stored_embeddings(checkpoint.weights)
    if before is None:
        raise UserError("this detector has learned its classes, and knows no other; train one with labels.embeddings=FILE")
    vectors = unit(read_embeddings(file, categories.names))
    if vectors.shape[1] != before.shape[1]:
        raise UserError(f"{file}: vectors of {vectors.shape[1]} numbers; the detector was trained with {before.shape[1]}")

    def moved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: vectors.clone() if holds_embeddings(key) else tensor for key, tensor in weights.items()}

    return replace(
        checkpoint,
        model=moved(checkpoint.model),
        ema=None if checkpoint.ema is None else moved(checkpoint.ema),
        category_ids=list(categories.ids),
        category_names=list(categories.names),
    )


def read_embeddings(file: str | Path, names: Sequence[str]) -> Tensor:
    """(C, E) float32, a row for each name. Raises UserError for a file that cannot be read or lacks a name."""
    vectors = read_vectors(file)
    missing = [name for name in names if name not in vectors]
    if missing:
        more = [f"  ... and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
        raise UserError(
            f"{file}: has no vector for {len(missing)} of the {len(names)} classes (dndetr labels embed makes such a file):",
            *(f"  {name}{nearest(name, vectors)}" for name in missing[:SHOWN]),
            *more,
        )
    rows = [vectors[name] for name in names]
    bad = next((name for name, row in zip(names, rows, strict=True) if not is_vector(row, like=rows[0])), None)
    if bad is not None:
        raise UserError(f"{file}: {bad}: must be a vector of finite numbers, not all 0, as long as the others")
    return torch.stack(rows).float()


def categories_in(file: str | Path) -> Categories:
    """Every name in a file as a class, by the alphabet, with ids from 1. Raises UserError."""
    names = sorted(read_vectors(file))
    return Categories(tuple(range(1, len(names) + 1)), tuple(names))


def vector_length(file: str | Path) -> int:
    """E, the numbers of a vector in a file; 0 where there is none. Raises UserError."""
    return max((vector.numel() for vector in read_vectors(file).values()), default=0)


def is_vector(row: Tensor, like: Tensor) -> bool:
    sound = row.dim() == 1 and row.shape == like.shape and row.is_floating_point()
    return sound and bool(row.isfinite().all()) and bool(row.any())


def nearest(name: str, vectors: Mapping[str, Tensor]) -> str:
    near = difflib.get_close_matches(name, vectors, n=3, cutoff=0.75)
    return f", there is {' and '.join(near)}" if near else ""


def read_vectors(file: str | Path) -> dict[str, Tensor]:
    """Every vector of a file by its name. Raises UserError."""
    library = safetensors()
    try:
        return library.torch.load(Path(file).read_bytes())
    except (OSError, library.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: cannot be read as a .safetensors file of embeddings: {reason}") from error


def write_vectors(file: str | Path, vectors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a file that labels.embeddings can name. Raises UserError where it cannot be written."""
    content = safetensors().torch.save(dict(vectors), dict(about))
    with writable(file, "give another file with --out"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(Path(file), content)


def safetensors() -> ModuleType:
    """The package, which comes with an extra. Raises UserError where it is missing."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError("files of embeddings need the package safetensors: pip install 'dndetr[text]'") from error
    return safetensors
