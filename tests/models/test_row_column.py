"""Row-column attention: what it is in terms of ordinary attention, and that it takes less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dndetr.models import row_column
from dndetr.models.conditional import beside
from dndetr.models.row_column import Axes, Grid, RowColumnAttention, TwoSteps, gather
from dndetr.models.transformer import attend

BATCH, HEIGHT, WIDTH, D, HEADS, QUERIES = 3, 5, 7, 16, 4, 40


def example(dtype: torch.dtype = torch.float64, padded: bool = True) -> tuple[RowColumnAttention, Tensor, Axes, Grid]:
    """An attention, queries with their coordinates, and images of which two are padded: below, or below and to the right."""
    torch.manual_seed(0)
    attention = RowColumnAttention(D, HEADS).to(dtype)
    x, at_x, at_y = torch.randn(3, BATCH, QUERIES, D, dtype=dtype)
    place = Axes(torch.randn(BATCH, WIDTH, D, dtype=dtype), torch.randn(BATCH, HEIGHT, D, dtype=dtype))
    columns = torch.arange(WIDTH) >= torch.tensor([WIDTH, WIDTH, 4])[:, None]
    rows = torch.arange(HEIGHT) >= torch.tensor([HEIGHT, 2, 3])[:, None]
    tokens = torch.randn(BATCH, HEIGHT, WIDTH, D, dtype=dtype)
    return attention, x.requires_grad_(), Axes(at_x, at_y), Grid(tokens, place, Axes(columns, rows) if padded else None)


def as_ordinary_attention(attention: RowColumnAttention, x: Tensor, at: Axes, image: Grid) -> Tensor:
    """Softmaxes multiply as their scores add up: the same with keys "of the column | of the row" for every token."""
    tokens, place, _ = image
    hidden = image.hidden()
    valid = torch.ones(1, HEIGHT, WIDTH, 1) if hidden is None else (~hidden).view(BATCH, HEIGHT, WIDTH, 1)
    columns, rows = ((tokens * valid).sum(dim) / valid.sum(dim).clamp(min=1) for dim in (1, 2))
    shape = tokens.shape
    of_column = attention.k_row(columns + place.x)[:, None].expand(shape).flatten(1, 2)
    of_row = attention.k_column(rows + place.y)[:, :, None].expand(shape).flatten(1, 2)
    keys = beside(of_column, of_row, HEADS)
    queries = beside(attention.q_row(x + at.x), attention.q_column(x + at.y), HEADS) * 2**0.5
    return attention.out(attend(queries, keys, attention.v(tokens.flatten(1, 2)), HEADS, hidden))


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("between", [1, 2**21], ids=["in parts", "at once"])
def test_it_is_ordinary_attention_with_keys_of_rows_and_columns(monkeypatch, between, padded):
    """Results and all gradients, to the last digits of float64."""
    monkeypatch.setattr(row_column, "BETWEEN_ON_CPU", between)
    attention, x, at, image = example(padded=padded)
    tensors = [x, *attention.parameters()]
    found = [look(attention, x, at, image) for look in (RowColumnAttention.forward, as_ordinary_attention)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-14)
    weights = torch.randn_like(x)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), tensors) for out in found)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_what_lies_under_the_padding_is_not_seen():
    attention, x, at, image = example()
    before = attention(x, at, image)
    hidden = image.hidden().view(BATCH, HEIGHT, WIDTH, 1)
    torch.testing.assert_close(attention(x, at, image._replace(tokens=image.tokens.masked_fill(hidden, 1e6))), before)
    assert (attention(x, at, image._replace(padding=None)) - before)[1:].abs().max() > 1e-2


def test_the_gradient_of_two_steps(monkeypatch):
    monkeypatch.setattr(row_column, "BETWEEN_ON_CPU", 1)
    torch.manual_seed(0)
    row, column, values = torch.rand(2, 20, 3), torch.rand(2, 20, 2), torch.randn(2, 3, 2 * 4)
    assert torch.autograd.gradcheck(TwoSteps.apply, [x.double().requires_grad_() for x in (row, column, values)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_about_the_same(dtype):
    attention, x, at, image = example(torch.float32)
    exact = attention(x, at, image)
    with torch.autocast("cpu", dtype):
        found = attention(x, at, image)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.02)


def test_many_parts_in_half_precision_add_up_as_one(monkeypatch):
    """The gradient of the values is a sum over all queries, here of 100 parts."""
    monkeypatch.setattr(row_column, "BETWEEN_ON_CPU", 1)
    torch.manual_seed(0)
    row, column, values = (x.bfloat16() for x in (torch.rand(1, 1600, 3), torch.rand(1, 1600, 2), torch.rand(1, 3, 8)))
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        leaf = values.to(dtype).detach().clone().requires_grad_()
        TwoSteps.apply(row.to(dtype), column.to(dtype), leaf).sum().backward()
        gradients.append(leaf.grad.double())
    torch.testing.assert_close(*gradients, rtol=2**-7, atol=0)


class Sizes(TorchDispatchMode):
    """The numbers of elements of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.made += [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        return result


def test_no_tensor_has_a_number_for_every_query_and_token(monkeypatch):
    """Forward and backward: nothing is larger than the values, or the weights of so many queries as are taken at once."""
    monkeypatch.setattr(row_column, "BETWEEN_ON_CPU", 1)
    queries, h, w = 200, 20, 30
    row, column = torch.rand(1, HEADS, queries, w), torch.rand(1, HEADS, queries, h)
    tensors = [x.requires_grad_() for x in (row, column, torch.randn(1, h, w, D))]
    with Sizes() as sizes:
        gather(*tensors).sum().backward()
    assert max(sizes.made) == max(x.numel() for x in tensors) == HEADS * queries * w
    assert HEADS * queries * h * w > 15 * max(sizes.made)  # what ordinary attention makes
    assert queries * h * D > 2 * max(sizes.made)  # what lies between the two steps
