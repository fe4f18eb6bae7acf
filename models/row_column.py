"""Row-column decoupled attention (Anchor DETR, Sec. 3.4): where a query looks is an x and a y, found apart.

A query asks the mean of every column for x and the mean of every row for y; the weight of a token is the product of the two.
So weights of w + h numbers a query stand for those of h * w, and values are summed along rows, then along what is left of
the columns. It is ordinary attention with keys of a special form: exp(a + b) = exp(a) exp(b).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dndetr.models.linear import Linear


class Axes(NamedTuple):
    """Something of the x and of the y axis."""

    x: Tensor
    y: Tensor


class Grid(NamedTuple):
    """An image as attention sees it, in rows and columns."""

    tokens: Tensor  # (B, h, w, D)
    place: Axes | Tensor  # encoded positions: of columns (B, w, D) and of rows (B, h, D), or of every token (B, h * w, D)
    padding: Axes | None  # (B, w) and (B, h) bool, True = no image here, which it is right of and below the image

    def hidden(self) -> Tensor | None:
        """(B, 1, h * w) bool, True = no image here."""
        if self.padding is None:
            return None
        return (self.padding.y[:, :, None] | self.padding.x[:, None]).flatten(1)[:, None]


class RowColumnAttention(nn.Module):
    """Multi-head attention on an image whose keys are its columns and its rows."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.q_row, self.q_column, self.k_row, self.k_column, self.v, self.out = (Linear(width, width) for _ in range(6))
        self.dropout = nn.Dropout(dropout)  # of the weights

    def forward(self, x: Tensor, at: Axes, image: Grid) -> Tensor:
        """x (B, W, D) with the encoded coordinates `at`, each (B, W, D), looks at the image: (B, W, D)."""
        hidden = image.padding or Axes(None, None)
        columns = self.k_row(mean(image.tokens, hidden.y, dim=1) + image.place.x)  # B w D
        rows = self.k_column(mean(image.tokens, hidden.x, dim=2) + image.place.y)  # B h D
        row = self.dropout(weigh(self.q_row(x + at.x), columns, self.heads, hidden.x))
        column = self.dropout(weigh(self.q_column(x + at.y), rows, self.heads, hidden.y))
        return self.out(gather(row, column, self.v(image.tokens)))


def mean(tokens: Tensor, hidden: Tensor | None, dim: int) -> Tensor:
    """The mean of (B, h, w, D) over the rows (`dim` 1) or columns (2) that are not `hidden` (B, h or w).

    The reference takes the mean over the padding as well, so that there an image's result depends on the batch.
    """
    if hidden is None:
        return tokens.mean(dim)
    valid = (~hidden[:, :, None, None] if dim == 1 else ~hidden[:, None, :, None]).to(tokens.dtype)
    return (tokens * valid).sum(dim) / valid.sum(dim)


def weigh(q: Tensor, k: Tensor, heads: int, hidden: Tensor | None) -> Tensor:
    """Weights of multi-head attention: q (B, W, D), k (B, n, D), hidden (B, n) to (B, heads, W, n)."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None], -math.inf)
    return scores.softmax(-1)


def gather(row: Tensor, column: Tensor, values: Tensor) -> Tensor:
    """What weights (B, heads, W, w) and (B, heads, W, h) find in values (B, h, w, D), heads side by side: (B, W, D)."""
    heads = row.shape[1]
    values = values.unflatten(-1, (heads, -1)).permute(0, 3, 2, 1, 4)  # B heads w h d
    row, column = (x.to(values.dtype).flatten(0, 1) for x in (row, column))
    found = TwoSteps.apply(row, column, values.reshape(len(row), row.shape[-1], -1))
    return found.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


class TwoSteps(torch.autograd.Function):
    """Sums over w, then over h, some queries at once: row (n, W, w), column (n, W, h), values (n, w, h * d) to (n, W, d).

    What lies between the sums, (n, W, h, d), would be the largest tensor of a detector. It is never there as a whole, and
    is computed again on the way back.
    """

    @staticmethod
    def forward(ctx, row: Tensor, column: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(row, column, values)
        found = values.new_empty(*row.shape[:2], values.shape[-1] // column.shape[-1])
        for part in parts(row, values):
            r, c = row[:, part], column[:, part]
            found[:, part] = (c[:, :, None] @ along_rows(r, values, c)).squeeze(2)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row, column, values = ctx.saved_tensors
        row_grad, column_grad = torch.empty_like(row), torch.empty_like(column)
        summed = torch.zeros_like(values, dtype=torch.promote_types(values.dtype, torch.float32))  # of many parts
        for part in parts(row, values):
            r, c, g = row[:, part], column[:, part], grad[:, part]
            column_grad[:, part] = (along_rows(r, values, c) @ g[..., None]).squeeze(-1)
            between = (c[..., None] * g[:, :, None]).flatten(2)  # n W' hd, the gradient of what lies between the sums
            row_grad[:, part] = between @ values.transpose(1, 2)
            if summed.dtype == values.dtype:
                summed.baddbmm_(r.transpose(1, 2), between)
            else:
                summed += r.transpose(1, 2) @ between
        return row_grad, column_grad, summed.to(values.dtype)


def along_rows(row: Tensor, values: Tensor, column: Tensor) -> Tensor:
    """The sums over w: (n, W', h, d)."""
    return (row @ values).unflatten(-1, (column.shape[-1], -1))


def parts(row: Tensor, values: Tensor) -> list[slice]:
    """Queries of which sums over w take BETWEEN bytes at once. A CPU keeps those in its cache.

    Results are made as a whole before: small ones made on the way would lie in the gaps that large ones leave.
    """
    between = BETWEEN_ON_CPU if values.device.type == "cpu" else BETWEEN
    count = max(16, between // (values[:, 0].numel() * values.element_size()))
    return [slice(start, start + count) for start in range(0, row.shape[1], count)]


BETWEEN, BETWEEN_ON_CPU = 2**26, 2**21
