"""Attention that falls off around points: the spatial modulation of SMCA, which SAM-DETR takes over."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(points: Tensor, scales: Tensor, shape: tuple[int, int], offset: float) -> Tensor:
    """What to add to attention's logits: -|scale * (point - token)|^2 / 8 of every token of a map, (B, heads, W, h * w).

    `points` and `scales` are (B, W, heads, 2), x before y, in pixels of the map. A token lies `offset` to the right of and
    below its index: 0 in SMCA, 0.5 in SAM-DETR. In float32, since squares of pixels are large.
    """
    h, w = shape
    x, y = (torch.arange(count, device=points.device) + offset for count in (w, h))
    points, scales = points.float(), scales.float()
    across = (scales[..., 0, None] * (points[..., 0, None] - x)).square()  # B W heads w
    down = (scales[..., 1, None] * (points[..., 1, None] - y)).square()  # B W heads h
    return (down[..., None] + across[..., None, :]).flatten(3).transpose(1, 2) / -8
