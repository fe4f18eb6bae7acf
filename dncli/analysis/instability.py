"""The instability of bipartite matching (Sec. 3.1): what the matches of successive epochs tell."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dndetr.console import UserError
from dndetr.files import replace_bytes


class Matches(NamedTuple):
    """The vector V of Eq. 1 of every validation image, after one epoch."""

    image_id: np.ndarray  # (I,) int64
    matched: np.ndarray  # (I, N) int32: the object that query n of the last layer matches, -1 = nothing
    layers: np.ndarray | None = None  # (L, I, N) int32: of every decoder layer; None in runs that did not keep them


def instability(previous: Matches, current: Matches) -> float:
    """Eq. 2: the number of queries whose match changed between two evaluations, averaged over the images.

    Raises ValueError where the two do not belong together, see `difference`.
    """
    check(previous, current)
    return float(changed(previous.matched, current.matched))


def layer_instability(previous: Matches, current: Matches) -> np.ndarray:
    """Eq. 2 of each decoder layer, (L,). Raises ValueError where the two do not belong together or have no layers."""
    check(previous, current)
    if previous.layers is None or current.layers is None or len(previous.layers) != len(current.layers):
        raise ValueError("instability by layer needs the matches of the same decoder layers in both evaluations")
    return changed(previous.layers, current.layers)


def largest_instability(matches: Matches) -> float:
    """The largest possible value of Eq. 2: every object moves to a query that had none, so each image counts 2 M.

    Where an image has fewer than 2 M queries it cannot count more than all of them.
    """
    objects = (matches.matched >= 0).sum(axis=1)
    return float(np.minimum(2 * objects, matches.matched.shape[1]).mean())


def difference(previous: Matches, current: Matches) -> str:
    """Why two evaluations cannot be compared, as what differs; empty where they can be."""
    if not np.array_equal(previous.image_id, current.image_id):
        return "the images"
    if previous.matched.shape != current.matched.shape:
        return "the number of queries"
    if not np.array_equal((previous.matched >= 0).sum(axis=1), (current.matched >= 0).sum(axis=1)):
        return "the objects of the images"
    return ""


def check(previous: Matches, current: Matches) -> None:
    differing = difference(previous, current)
    if differing:
        raise ValueError(f"instability compares matches of the same images, objects and queries; {differing} differ")
    if not len(current.image_id):
        raise ValueError("instability needs at least one image")


def changed(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    """(..., I, N) twice to (...): changed queries, averaged over the images."""
    return (previous != current).sum(axis=-1).mean(axis=-1)


def save_matches(path: Path, matches: Matches) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **{name: array for name, array in matches._asdict().items() if array is not None})
    replace_bytes(path, content.getvalue())


def load_matches(path: Path) -> Matches:
    """Raises UserError where the file cannot be read."""
    try:
        with np.load(path) as arrays:
            return Matches(arrays["image_id"], arrays["matched"], arrays.get("layers"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as the matches of an epoch ({error}); remove it to go on") from error
