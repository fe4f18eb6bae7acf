"""The neck: backbone features at one width, at as many levels as the transformer wants."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.models.deformable import Pyramid
from dndetr.models.position import encode_image
from dndetr.models.structures import Feature


class Neck(nn.Module):
    """Brings backbone features to one width; missing levels come from 3 x 3 convolutions of stride 2."""

    def __init__(self, channels: list[int], width: int, levels: int, norm: bool = True, embed: bool = True):
        """`norm`: a group norm after each convolution. `embed`: positions also say the level."""
        super().__init__()
        self.kept = min(len(channels), levels)  # the coarsest ones
        kept = [Projection(c, width, norm=norm) for c in channels[-self.kept :]]
        sources = [channels[-1]] + [width] * levels  # the first extra level starts from the backbone, the next from it
        halved = dict(kernel_size=3, stride=2, padding=1, norm=norm)
        self.project = nn.ModuleList(kept + [Projection(c, width, **halved) for c in sources[: levels - self.kept]])
        self.level = nn.Parameter(torch.randn(levels, width)) if embed else None
        self.width = width

    def forward(self, features: list[Feature], temperature: float, offset: float) -> Pyramid:
        features = features[-self.kept :]
        levels = [project(feature) for project, feature in zip(self.project, features, strict=False)]
        last = features[-1]
        for project in self.project[self.kept :]:
            last = project(last)
            levels.append(last)
        positions = [encode_image(level, self.width, temperature, offset) for level in levels]
        if self.level is not None:
            positions = [position + self.level[i] for i, position in enumerate(positions)]
        padded = last.padding is not None
        return Pyramid(
            tokens=torch.cat([level.x.flatten(2).transpose(1, 2) for level in levels], dim=1),
            position=torch.cat(positions, dim=1).to(last.x.dtype),
            padding=torch.cat([level.padding.flatten(1) for level in levels], dim=1) if padded else None,
            shapes=[(level.x.shape[2], level.x.shape[3]) for level in levels],
            valid=torch.stack([valid_share(level) for level in levels], dim=1),
        )


class Projection(nn.Module):
    """A convolution and, with `norm`, a group norm that do not know how far the image was padded.

    The reference convolves and normalises the padding as well, so that there an image's result depends on the batch.
    """

    def __init__(self, inner: int, outer: int, kernel_size: int = 1, stride: int = 1, padding: int = 0, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel_size, stride, padding)
        self.norm = nn.GroupNorm(math.gcd(32, outer), outer) if norm else nn.Identity()

    def forward(self, feature: Feature) -> Feature:
        """The level at the resolution and width of the convolution."""
        x, padding = feature
        if padding is None:
            return Feature(self.norm(self.conv(x)), None)
        shrunk = padding[:, :: self.conv.stride[0], :: self.conv.stride[1]]
        x = self.conv(x.masked_fill(padding[:, None], 0))
        return Feature(masked_group_norm(x, shrunk, self.norm) if isinstance(self.norm, nn.GroupNorm) else x, shrunk)


def masked_group_norm(x: Tensor, padding: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`norm` of x (B, C, h, w) with the statistics of the unpadded pixels alone."""
    groups = x.float().unflatten(1, (norm.num_groups, -1))  # B G c h w
    valid = (~padding)[:, None, None].float()
    count = valid.sum((2, 3, 4), keepdim=True) * groups.shape[2]
    mean = (groups * valid).sum((2, 3, 4), keepdim=True) / count
    centered = groups - mean
    variance = (centered.square() * valid).sum((2, 3, 4), keepdim=True) / count
    normed = (centered * (variance + norm.eps).rsqrt()).flatten(1, 2)
    return (normed * norm.weight[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


def as_tokens(feature: Feature, project: nn.Module, temperature: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """One map as DETR's transformer takes it: tokens and their encoded positions, each (B, S, D), and the padding (B, S)."""
    tokens = project(feature.x).flatten(2).transpose(1, 2)
    position = encode_image(feature, tokens.shape[2], temperature).to(feature.x.dtype)
    return tokens, position, None if feature.padding is None else feature.padding.flatten(1)


def valid_share(feature: Feature) -> Tensor:
    """The unpadded share of width and height (B, 2)."""
    x, padding = feature
    if padding is None:
        return x.new_ones((len(x), 2), dtype=torch.float32)
    return torch.stack(((~padding[:, 0]).float().mean(1), (~padding[:, :, 0]).float().mean(1)), dim=1)


def bordered(x: Tensor, padding: Tensor | None) -> Tensor:
    """A map (B, D, h, w) with its last valid row and column once more, and nothing beyond: (B, D, h + 2, w + 2).

    What is read between the tokens of an image is then the same on every canvas, and the same as on no canvas at all.
    """
    valid = torch.ones_like(x[:, :1], dtype=torch.bool) if padding is None else ~padding[:, None]
    x, valid = (F.pad(each, (0, 2, 0, 2)) for each in (x.masked_fill(~valid, 0), valid))
    for dim in (2, 3):
        copied = valid.roll(1, dim) & ~valid  # what rolls over the edge is the padding that was just added
        x, valid = torch.where(copied, x.roll(1, dim), x), valid | copied
    return x
