"""Decoders with conditional cross-attention: Conditional DETR's, and DAB-DETR's (Sec. 4.2), whose anchors have a size.

DAB-DETR's modulates attention by width and height, and refines box by box. With one level it is DAB-DETR's own; with several
it is the dense decoder over deformable features (Sec. 4.6), which attends to each level apart and weighs the levels by what a
query holds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dndetr.models.denoising.queries import Queries
from dndetr.models.heads import MLP, DetectionHeads
from dndetr.models.linear import Linear
from dndetr.models.position import encode_anchors
from dndetr.models.transformer import FeedForward, attend


class Memory(NamedTuple):
    """The image that the decoder looks at: the tokens of all levels, one level after the other."""

    tokens: Tensor  # (B, S, D)
    position: Tensor  # (B, S, D)
    padding: Tensor | None  # (B, S) bool, True = no image here
    sizes: list[int]  # tokens of each level


class ConditionalDecoder(nn.Module):
    """Decoder layers with dense attention and 4D anchors."""

    def __init__(self, *, layers: int, width: int, **build):
        """`width` and `build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(ConditionalLayer(first=i == 0, width=width, **build) for i in range(layers))
        self.norm = nn.LayerNorm(width)
        self.anchor_position = MLP(2 * width, width, width)
        self.content_scale = MLP(width, width, width) if layers > 1 else None  # the first layer has no content to ask
        self.reference_size = MLP(width, width, 2)
        self.width = width

    def forward(self, queries: Queries, memory: Memory, heads: DetectionHeads) -> tuple[Tensor, Tensor]:
        """Hidden states (L, B, W, D), after the norm, and the boxes of every layer (L, B, W, 4)."""
        x, blocked = queries.content, queries.blocked()
        reference = queries.position.sigmoid()
        states, boxes = [], []
        for i, layer in enumerate(self.layers):
            at = reference.detach() if i else reference
            sine = encode_anchors(at, self.width // 2).to(x.dtype)
            x = layer(x, self.anchor_position(sine), self.modulate(x, sine, at, scale=i > 0), memory, blocked)
            state = self.norm(x)
            states.append(state)
            # The supervised box is refined from a reference with gradient, the next reference from the state before
            # its norm: both as in DAB-DETR, so that its weights mean the same here.
            boxes.append(heads.boxes(i, state, reference))
            if layer is not self.layers[-1]:
                reference = heads.boxes(i, x, at)
        return torch.stack(states), torch.stack(boxes)

    def modulate(self, x: Tensor, sine: Tensor, anchors: Tensor, scale: bool) -> Tensor:
        """The query's positional part (B, W, D): y and x, scaled by the content, stretched by predicted over anchor size.

        In float32: the anchors of small objects divide by almost nothing.
        """
        center = sine[..., : self.width]
        if scale:
            center = center * self.content_scale(x)
        width, height = self.reference_size(x).float().sigmoid().unbind(-1)
        y, x = center.float().chunk(2, dim=-1)
        y, x = y * (height / anchors[..., 3])[..., None], x * (width / anchors[..., 2])[..., None]
        return torch.cat((y, x), dim=-1).to(sine.dtype)


class PointDecoder(nn.Module):
    """Conditional DETR's: queries look at the image from points that stay where they are."""

    def __init__(self, *, layers: int, width: int, **build):
        """`width` and `build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(ConditionalLayer(first=i == 0, width=width, **build) for i in range(layers))
        self.norm = nn.LayerNorm(width)
        self.content_scale = MLP(width, width, width) if layers > 1 else None  # the first layer has no content to ask
        self.width = width

    def forward(self, queries: Queries, memory: Memory, heads: DetectionHeads) -> tuple[Tensor, Tensor]:
        """As ConditionalDecoder; positions (B, W, D + 2) are an embedding and the logits of a point."""
        x, blocked = queries.content, queries.blocked()
        embedding, point = queries.position.split((self.width, 2), dim=-1)
        reference = point.float().sigmoid()
        sine = encode_anchors(reference, self.width // 2).to(x.dtype)
        states, boxes = [], []
        for i, layer in enumerate(self.layers):
            x = layer(x, embedding, sine * self.content_scale(x) if i else sine, memory, blocked)
            states.append(self.norm(x))
            boxes.append(heads.boxes(i, states[-1], reference))
        return torch.stack(states), torch.stack(boxes)


class ConditionalLayer(nn.Module):
    """Self-attention, cross-attention in which content and position are compared apart, feed-forward."""

    def __init__(
        self, *, first: bool, width: int, heads: int, ffn: int, dropout: float, activation: type[nn.Module], levels: int
    ):
        super().__init__()
        self.heads = heads
        self.self_content = nn.ModuleDict({name: Linear(width, width) for name in ("q", "k", "v", "out")})
        self.self_position = nn.ModuleDict({name: Linear(width, width) for name in ("q", "k")})
        self.norm1 = nn.LayerNorm(width)
        self.cross_content = nn.ModuleDict({name: Linear(width, width) for name in ("q", "k", "v", "out")})
        self.cross_position = nn.ModuleDict({name: Linear(width, width) for name in ("q", "k")})
        self.first_position = Linear(width, width) if first else None
        self.level_weights = Linear(width, levels) if levels > 1 else None
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn, dropout, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, anchor_position: Tensor, modulated: Tensor, memory: Memory, blocked: Tensor | None) -> Tensor:
        content, at = self.self_content, self.self_position
        q = content["q"](x) + at["q"](anchor_position)
        k = content["k"](x) + at["k"](anchor_position)
        found = content["out"](attend(q, k, content["v"](x), self.heads, blocked, dropout=self.left_out))
        x = self.norm1(x + self.dropout(found))
        levels = self.cross_attend(x, anchor_position, modulated, memory)
        if self.level_weights is None:
            (found,) = levels
        else:
            weights = self.level_weights(q).softmax(-1)  # B W levels, from the query as self-attention saw it
            found = sum(level * weights[..., i, None] for i, level in enumerate(levels))
        x = self.norm2(x + self.dropout(found))
        return self.feed_forward(x)

    def cross_attend(self, x: Tensor, anchor_position: Tensor, modulated: Tensor, memory: Memory) -> list[Tensor]:
        """What each query finds in each level, (B, W, D) a level."""
        content, at = self.cross_content, self.cross_position
        tokens, position, padding, sizes = memory
        q, k, v, k_position = content["q"](x), content["k"](tokens), content["v"](tokens), at["k"](position)
        if self.first_position is not None:  # contents are still empty: let positions speak twice
            q, k = q + self.first_position(anchor_position), k + k_position
        q, k = beside(q, at["q"](modulated), self.heads), beside(k, k_position, self.heads)
        hidden = [None] * len(sizes) if padding is None else padding[:, None].split(sizes, -1)
        parts = zip(k.split(sizes, 1), v.split(sizes, 1), hidden, strict=True)
        return [content["out"](attend(q, k, v, self.heads, blocked, dropout=self.left_out)) for k, v, blocked in parts]

    @property
    def left_out(self) -> float:
        """The share of attention weights that are dropped."""
        return self.dropout.p if self.training else 0.0


def beside(content: Tensor, position: Tensor, heads: int) -> Tensor:
    """Content and position side by side in every head: two (B, S, D) to (B, S, 2 D)."""
    both = (content.unflatten(-1, (heads, -1)), position.unflatten(-1, (heads, -1)))
    return torch.cat(both, dim=-1).flatten(-2)
