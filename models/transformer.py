"""Attention, feed-forward, the dense encoder and DETR's plain decoder layer, which the hosts share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.models.heads import MLP
from dndetr.models.linear import Linear
from dndetr.models.structures import Apart


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    blocked: Tensor | Apart | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention without projections: q (B, W, E), k (B, S, E), v (B, S, D) to (B, W, D).

    `blocked` is bool, True = may not attend, and broadcasts to (B, W, S). `bias` is added to what the softmax sees and
    broadcasts to (B, heads, W, S). `dropout` is the share of weights that are left out.
    """
    if isinstance(blocked, Apart):
        return attend_apart(q, k, v, heads, blocked, dropout)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if blocked is None else ~blocked[:, None]
    if bias is not None:
        mask = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, -math.inf)
    if q.device.type == "cpu" and slow_when_fused(q, v):
        found = attend_step_by_step(q, k, v, mask, dropout)
    else:
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return found.transpose(1, 2).flatten(-2)


def attend_apart(q: Tensor, k: Tensor, v: Tensor, heads: int, blocked: Apart, dropout: float) -> Tensor:
    """The same among queries (B, W, .) whose last groups see but themselves: each is as a batch of its own."""
    alone = blocked.groups * blocked.size
    first = attend(*(x[:, :-alone] for x in (q, k, v)), heads, blocked.first, dropout=dropout)
    apart = (x[:, -alone:].unflatten(1, (blocked.groups, -1)).flatten(0, 1) for x in (q, k, v))
    found = attend(*apart, heads, dropout=dropout)  # B*groups size D
    return torch.cat((first, found.unflatten(0, (-1, blocked.groups)).flatten(1, 2)), dim=1)


def slow_when_fused(q: Tensor, v: Tensor) -> bool:
    """Where PyTorch's fused attention loses on a CPU: its gradient in bf16 takes 3 to 10 times as long, and for values of
    another width than the queries there is none, only the same steps done less well.
    """
    return (q.dtype == torch.bfloat16 and torch.is_grad_enabled()) or q.shape[-1] != v.shape[-1]


def attend_step_by_step(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same from single operations, on tensors (B, heads, ., .); `mask` is bool, True = may attend, or is added."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


class Attention(nn.Module):
    """Multi-head attention whose queries and keys carry positions that the values do not."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.out = (Linear(width, width) for _ in range(4))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        blocked: Tensor | Apart | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """x (B, W, D) with added positions (B, W, D) looks at itself, or at `memory`, an image and its positions (B, S, D)."""
        seen, place = (x, position) if memory is None else memory
        q, k, v = self.q(x + position), self.k(seen + place), self.v(seen)
        return self.out(attend(q, k, v, self.heads, blocked, bias, self.dropout if self.training else 0.0))


CACHED_TOKENS = 1024  # on a CPU: so many at once that what lies between the two layers does not leave the cache


class FeedForward(nn.Module):
    """Two linear layers with a residual and a norm after them, or with `pre_norm` before them."""

    def __init__(self, width: int, hidden: int, dropout: float, activation: type[nn.Module], pre_norm: bool = False):
        super().__init__()
        self.linear1, self.linear2 = Linear(width, hidden), Linear(hidden, width)
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor) -> Tensor:
        return residual(x, self.norm, self.dropout, self.pre_norm, self.each)

    def each(self, x: Tensor) -> Tensor:
        """What the layers make of each token of x (..., D)."""
        tokens = x.flatten(0, -2)
        parts = tokens.split(CACHED_TOKENS) if x.device.type == "cpu" and len(tokens) > CACHED_TOKENS else [tokens]
        found = [self.linear2(self.dropout(self.activation(self.linear1(part)))) for part in parts]
        return (torch.cat(found) if len(found) > 1 else found[0]).view_as(x)


def residual(x: Tensor, norm: nn.Module, dropout: nn.Module, pre_norm: bool, find: Callable[[Tensor], Tensor]) -> Tensor:
    """x and what is found from it, normed afterwards, or with `pre_norm` before the search."""
    if pre_norm:
        return x + dropout(find(norm(x)))
    return norm(x + dropout(find(x)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, activation: type[nn.Module], pre_norm: bool):
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, activation, pre_norm)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None) -> Tensor:
        def look(x: Tensor) -> Tensor:
            return self.attention(x, position, blocked)

        return self.feed_forward(residual(x, self.norm, self.dropout, self.pre_norm, look))


class DenseEncoder(nn.Module):
    """DETR's encoder; with `scale_positions` DAB-DETR's, where positions are scaled by what each token holds."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        ffn: int,
        layers: int,
        dropout: float,
        activation: type[nn.Module] = nn.PReLU,
        pre_norm: bool = False,
        scale_positions: bool = True,
    ):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, ffn, dropout, activation, pre_norm) for _ in range(layers))
        self.position_scale = MLP(width, width, width) if layers and scale_positions else None
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()  # layers with pre-norm leave what they give un-normed

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """tokens and position (B, S, D), padding (B, S) or None to (B, S, D)."""
        blocked = None if padding is None else padding[:, None]
        for layer in self.layers:
            at = position if self.position_scale is None else position * self.position_scale(tokens)
            tokens = layer(tokens, at, blocked)
        return self.norm(tokens)


class DecoderLayer(nn.Module):
    """DETR's: self-attention among the queries, cross-attention with the image, feed-forward."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, pre_norm: bool = False):
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, ffn, dropout, nn.ReLU, pre_norm)
        self.pre_norm = pre_norm

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        memory: tuple[Tensor, Tensor],
        blocked: Tensor | None,
        padding: Tensor | None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """x and position (B, W, D), memory: tokens and their positions (B, S, D), padding (B, S).

        `bias` is added to what the softmax of the cross-attention sees and broadcasts to (B, heads, W, S).
        """

        def among(x: Tensor) -> Tensor:
            return self.self_attention(x, position, blocked)

        def across(x: Tensor) -> Tensor:
            return self.look(x, position, memory, padding, bias)

        x = residual(x, self.norm1, self.dropout, self.pre_norm, among)
        x = residual(x, self.norm2, self.dropout, self.pre_norm, across)
        return self.feed_forward(x)

    def look(
        self, x: Tensor, position: Tensor, memory: tuple[Tensor, Tensor], padding: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """What the queries find in the image."""
        return self.cross_attention(x, position, None if padding is None else padding[:, None], memory, bias)


def init_xavier(module: nn.Module) -> None:
    """Xavier for every matrix, as all DETR-like transformers begin."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
