"""A box of an annotation and the image around it: what of the box can be seen."""

from __future__ import annotations

from collections.abc import Sequence

SLACK = 1.0  # pixels by which a box may leave its image: annotation tools round
LEAST = 1e-6  # of the image's side: a box that is narrower has no width in float32


def leaves(box: Sequence[float], width: int, height: int) -> bool:
    """Whether a box x, y, width, height leaves its image by more than rounding."""
    return max(-box[0], -box[1], box[0] + box[2] - width, box[1] + box[3] - height) > SLACK


def clipped(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float] | None:
    """x, y, width, height in pixels to cxcywh in [0, 1] of the image; None where nothing of it is inside."""
    x0, x1 = (min(max(edge / width, 0.0), 1.0) for edge in (box[0], box[0] + box[2]))
    y0, y1 = (min(max(edge / height, 0.0), 1.0) for edge in (box[1], box[1] + box[3]))
    if min(x1 - x0, y1 - y0) < LEAST:
        return None
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


def inside(box: Sequence[float], width: int, height: int) -> Sequence[float] | None:
    """What is in the image of a box x, y, width, height: the box itself if it leaves by rounding only, None for nothing."""
    seen = clipped(box, width, height)
    if seen is None or not leaves(box, width, height):
        return None if seen is None else box
    x, y, w, h = (share * side for share, side in zip(seen, (width, height) * 2, strict=True))
    return [x - w / 2, y - h / 2, w, h]
