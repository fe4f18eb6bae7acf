"""Sine encodings of image positions and of anchors."""

import math

import torch
from torch import Tensor

from dndetr.models.structures import Feature


def encode_image(feature: Feature, width: int, temperature: float, offset: float = 0.0) -> Tensor:
    """Positional encoding of a feature map (B, C, h, w): (B, h * w, width), first half y, second half x.

    Positions count the valid pixels from 1 to the last one, which lies at 2 pi. DAB-DETR takes a temperature of 20 and no
    offset, Deformable DETR 10000 and an offset of -0.5 (pixel centres).
    """
    x, padding = feature
    valid = torch.ones_like(x[:, 0], dtype=torch.float32) if padding is None else (~padding).float()
    axes = []
    for dim in (1, 2):
        count = valid.cumsum(dim)
        last = count.narrow(dim, count.shape[dim] - 1, 1)
        axes.append(waves((count + offset) / (last + 1e-6), width // 2, temperature))
    return torch.cat(axes, dim=-1).flatten(1, 2)


def encode_anchors(anchors: Tensor, width: int) -> Tensor:
    """Anchor points or boxes (..., 2 or 4) in [0, 1] to (..., width a coordinate), in the order y, x, w, h."""
    order = [1, 0, 2, 3][: anchors.shape[-1]]
    return waves(anchors[..., order], width, temperature=10000.0).flatten(-2)


def waves(x: Tensor, width: int, temperature: float) -> Tensor:
    """(...) in [0, 1] to (..., width): sine at even and cosine at odd channels, a frequency shared by each pair."""
    pair = torch.arange(width, device=x.device) // 2
    phase = 2 * math.pi * x[..., None] / temperature ** (2 * pair / width)
    return torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), dim=-1).flatten(-2)
