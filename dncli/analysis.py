"""What the matches of successive epochs tell: the instability of bipartite matching (Sec. 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Matches(NamedTuple):
    """The vector V of Eq. 1 of every validation image, after one epoch."""

    image_id: np.ndarray  # (I,) int64
    matched: np.ndarray  # (I, N) int32: the object that query n of the last layer matches, -1 = nothing


def instability(previous: Matches, current: Matches) -> float:
    """Eq. 2: the number of queries whose match changed between two evaluations, averaged over the images.

    The largest possible value is twice the mean number of objects. Raises ValueError where the two do not hold the same
    images in the same order, or another number of queries.
    """
    if previous.matched.shape != current.matched.shape or not np.array_equal(previous.image_id, current.image_id):
        raise ValueError("instability compares matches of the same images and queries, these belong to different ones")
    if not len(current.image_id):
        raise ValueError("instability needs at least one image")
    return float((previous.matched != current.matched).sum(axis=1).mean())
