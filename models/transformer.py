"""Attention, feed-forward and the dense encoder that the hosts share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.models.heads import MLP


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, blocked: Tensor | None = None) -> Tensor:
    """Multi-head attention without projections: q (B, W, E), k (B, S, E), v (B, S, D) to (B, W, D).

    `blocked` is bool, True = may not attend, and broadcasts to (B, W, S).
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu" and slow_when_fused(q, v):
        found = attend_step_by_step(q, k, v, blocked)
    else:
        mask = None if blocked is None else ~blocked[:, None]
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return found.transpose(1, 2).flatten(-2)


def slow_when_fused(q: Tensor, v: Tensor) -> bool:
    """Where PyTorch's fused attention loses on a CPU: its gradient in bf16 takes 3 to 10 times as long, and for values of
    another width than the queries there is none, only the same steps done less well.
    """
    return (q.dtype == torch.bfloat16 and torch.is_grad_enabled()) or q.shape[-1] != v.shape[-1]


def attend_step_by_step(q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None) -> Tensor:
    """The same from single operations, on tensors (B, heads, ., .)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if blocked is not None:
        scores = scores.masked_fill(blocked[:, None], -math.inf)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head attention whose queries and keys carry positions that the values do not."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Self-attention of x (B, W, D) with added positions (B, W, D)."""
        at = x + position
        return self.out(attend(self.q(at), self.k(at), self.v(x), self.heads, blocked))


CACHED_TOKENS = 1024  # on a CPU: so many at once that what lies between the two layers does not leave the cache


class FeedForward(nn.Module):
    """Two linear layers with a residual and a norm after them."""

    def __init__(self, width: int, hidden: int, dropout: float, activation: type[nn.Module]):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation(inplace=True) if activation is nn.ReLU else activation()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # in place works on a result of its own, not on a view of one
        parts = tokens.split(CACHED_TOKENS) if x.device.type == "cpu" and len(tokens) > CACHED_TOKENS else [tokens]
        found = [self.linear2(self.dropout(self.activation(self.linear1(part)))) for part in parts]
        return self.norm(x + self.dropout(torch.cat(found) if len(found) > 1 else found[0]).view_as(x))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by its norm."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, hidden, dropout, nn.PReLU)

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None) -> Tensor:
        x = self.norm(x + self.dropout(self.attention(x, position, blocked)))
        return self.feed_forward(x)


class DenseEncoder(nn.Module):
    """DAB-DETR's encoder: the positions are scaled by what each token holds."""

    def __init__(self, *, width: int, heads: int, ffn: int, layers: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, ffn, dropout) for _ in range(layers))
        self.position_scale = MLP(width, width, width) if layers else None

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """tokens and position (B, S, D), padding (B, S) or None to (B, S, D)."""
        blocked = None if padding is None else padding[:, None]
        for layer in self.layers:
            tokens = layer(tokens, position * self.position_scale(tokens), blocked)
        return tokens


def init_xavier(module: nn.Module) -> None:
    """Xavier for every matrix, as all DETR-like transformers begin."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
