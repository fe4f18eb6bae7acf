"""SMCA's parts: a decoder whose attention falls off around points, and an encoder of several scales without attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.models.deformable import Pyramid
from dndetr.models.denoising.queries import Queries
from dndetr.models.gaussian import gaussian
from dndetr.models.heads import MLP, DetectionHeads
from dndetr.models.linear import Linear
from dndetr.models.neck import bordered
from dndetr.models.transformer import DecoderLayer, FeedForward, residual


class Scale(NamedTuple):
    """One scale of the encoded image."""

    tokens: Tensor  # (B, S, D)
    position: Tensor  # (B, S, D)
    padding: Tensor | None  # (B, S) bool
    shape: tuple[int, int]  # h, w
    size: Tensor  # (B, 2) w, h of the image, in tokens, not rounded
    stride: int


class ModulatedDecoder(nn.Module):
    """DETR's decoder, in which every head of a query looks around a point of its own (SMCA, Sec. 3.2, 3.3)."""

    def __init__(self, *, layers: int, width: int, **build):
        """`width` and `build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(ModulatedLayer(width=width, **build) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.center = MLP(width, width, width, 2)

    def forward(self, queries: Queries, scales: list[Scale], heads: DetectionHeads) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (L, B, W, D), boxes of every layer (L, B, W, 4), and the centres around which queries look (B, W, 2).

        A centre is told by the query as the first layer gets it, and stays.
        """
        x, blocked = queries.content, queries.blocked()
        center = self.center(self.layers[0].modulation.norm(x + queries.position)).float().sigmoid()
        states = []
        for layer in self.layers:
            x = layer(x, queries.position, scales, center, blocked)
            states.append(self.norm(x))
        states = torch.stack(states)
        return states, heads.boxes(0, states, center), center


class ModulatedLayer(DecoderLayer):
    """A plain decoder layer whose cross-attention is modulated, in each scale apart; the query weighs what it finds there."""

    def __init__(self, *, width: int, heads: int, ffn: int, dropout: float, scales: int):
        super().__init__(width, heads, ffn, dropout)
        self.modulation = Modulation(width, heads, scales)

    def forward(self, x: Tensor, position: Tensor, scales: list[Scale], center: Tensor, blocked: Tensor | None) -> Tensor:
        """x and position (B, W, D), center (B, W, 2) in the image."""
        weighed = self.modulation(x + position, center, scales)  # of the query as it comes, before self-attention
        return super().forward(x, position, scales, blocked, None, weighed)

    def look(
        self, x: Tensor, position: Tensor, scales: list[Scale], padding: None, weighed: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        found = 0.0
        for scale, (weight, bias) in zip(scales, weighed, strict=True):
            found = found + weight * super().look(x, position, (scale.tokens, scale.position), scale.padding, bias)
        return found


class Modulation(nn.Module):
    """What a query says of its attention: a point and how fast to fall off around it, for every head of every scale."""

    def __init__(self, width: int, heads: int, scales: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.offsets, self.falloff = (Linear(width, scales * heads * 2) for _ in range(2))
        self.weights = Linear(width, scales) if scales > 1 else None
        self.split = (scales, heads, 2)

    def forward(self, x: Tensor, center: Tensor, scales: list[Scale]) -> list[tuple[Tensor, Tensor]]:
        """From queries x (B, W, D) the weight of each scale (B, W, 1), and what to add to its attention (B, heads, W, S)."""
        x = self.norm(x)
        offsets, falloff = (layer(x).float().unflatten(-1, self.split) for layer in (self.offsets, self.falloff))
        weights = x.new_ones(1, 1, 1) if self.weights is None else self.weights(x).softmax(-1)
        biases = []
        for i, scale in enumerate(scales):
            points = (center * scale.size[:, None])[:, :, None] + offsets[:, :, i]  # B W heads 2, in tokens
            # In a finer scale the same place is more tokens away: its squares count by the stride over 32.
            biases.append(gaussian(points, falloff[:, :, i] * (scale.stride / 32) ** 0.5, scale.shape, offset=0.0))
        return list(zip(weights.split(1, dim=-1), biases, strict=True))

    def init_round(self) -> None:
        """Attention starts to fall off alike in all directions and for all queries."""
        nn.init.zeros_(self.falloff.weight)
        nn.init.ones_(self.falloff.bias)


class ScaleEncoder(nn.Module):
    """Convolutions that exchange what neighbouring scales hold, and feed-forward; both act alike on every scale."""

    def __init__(self, *, layers: int, **build):
        """`build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(ScaleLayer(**build) for _ in range(layers))

    def forward(self, image: Pyramid) -> Tensor:
        """Refined tokens (B, S, D)."""
        x = image.tokens
        for layer in self.layers:
            x = layer(x, image)
        return x


class ScaleLayer(nn.Module):
    """Each scale, the finer one brought down and the coarser one brought up, added; then feed-forward."""

    def __init__(self, *, width: int, ffn: int, dropout: float, scales: int):
        super().__init__()
        self.enter, self.leave = Linear(width, width), Linear(width, width)
        self.own = nn.ModuleList(depthwise(width) for _ in range(scales))
        self.down = depthwise(width, stride=2)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, ffn, dropout, nn.ReLU)

    def forward(self, x: Tensor, image: Pyramid) -> Tensor:
        """x (B, S, D), the tokens of all scales, fine to coarse."""

        def exchange(x: Tensor) -> Tensor:
            x = self.enter(x + image.position)
            return self.leave(self.mixed(x if image.padding is None else x.masked_fill(image.padding[..., None], 0), image))

        return self.feed_forward(residual(x, self.norm, self.dropout, False, exchange))

    def mixed(self, x: Tensor, image: Pyramid) -> Tensor:
        """The sums (B, S, D) of what the convolutions make of x (B, S, D), which is 0 under the padding."""
        parts = zip(x.split(image.sizes, dim=1), image.shapes, strict=True)
        maps = [part.mT.unflatten(2, shape) for part, shape in parts]
        hidden, own = image.hidden, [convolve(each) for convolve, each in zip(self.own, maps, strict=True)]
        found = []
        for i, (h, w) in enumerate(image.shapes):
            here = own[i]
            if i > 0:
                here = here + self.down(maps[i - 1])
            if i + 1 < len(maps):
                padding = None if hidden[i + 1] is None else hidden[i + 1].unflatten(1, image.shapes[i + 1])
                here = here + doubled(bordered(own[i + 1], padding))[..., :h, :w]
            found.append(here.flatten(2).mT)
        return torch.cat(found, dim=1)


def doubled(x: Tensor) -> Tensor:
    """A map (B, D, h, w) at twice its resolution, bilinear. Twice exactly, so that no canvas moves what is in its corner."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def depthwise(width: int, stride: int = 1) -> nn.Conv2d:
    """7 x 7, every channel for itself."""
    return nn.Conv2d(width, width, kernel_size=7, stride=stride, padding=3, groups=width)
