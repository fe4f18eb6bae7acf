"""Calls of deformable attention to try, and what they must give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dndetr.models.deformable import Shapes, ms_deform_attn_torch

DTYPES = [  # of values, and of locations and weights
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.bfloat16),
]
# The CPU kernels lay tokens side by side where they are read several times each, and read them in place otherwise.
MANY = {"shapes": [(3, 4), (2, 2)], "queries": 19}
FEW = {"shapes": [(13, 17), (7, 9)], "queries": 3}
NAMES = ("result", "gradient of value", "gradient of locations", "gradient of weights")


@dataclass(frozen=True)
class Call:
    value: Tensor
    shapes: Shapes
    locations: Tensor
    weights: Tensor
    grad: Tensor  # of the result

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.value, self.locations, self.weights

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        tensors = {name: change(getattr(self, name)) for name in ("value", "locations", "weights", "grad")}
        return replace(self, **tensors)


def make(
    shapes: Shapes,
    *,
    batch: int = 2,
    queries: int = 7,
    heads: int = 2,
    width: int = 8,
    points: int = 4,
    dtype: torch.dtype = torch.float64,
    fine: torch.dtype | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Call:
    """A random call; `fine` is the dtype of locations and weights. Many points lie outside of their level."""
    rng = torch.Generator().manual_seed(seed)
    rows = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width, dtype=torch.float64, generator=rng)
    weights = torch.randn(rows, dtype=torch.float64, generator=rng)
    grad = torch.randn(batch, queries, heads * width, dtype=torch.float64, generator=rng)
    locations = torch.rand(*rows, 2, dtype=torch.float64, generator=rng)
    fractions = torch.rand(*rows, 2, dtype=torch.float64, generator=rng) * 0.6 + 0.2
    sides = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
    # Off the borders of cells: there rounding decides which of two gradients a location has.
    cells = (locations * (sides + 4)).floor() - 3
    locations = (cells + fractions + 0.5) / sides
    fine = fine or dtype
    return Call(value.to(device, dtype), shapes, locations.to(device, fine), weights.to(device, fine), grad.to(device, dtype))


def operator(value: Tensor, shapes: Shapes | Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.dndetr.ms_deform_attn(value, torch.as_tensor(shapes), locations, weights)


def never(*args: object) -> None:
    raise AssertionError("this was not to be called")


def results(function: Callable[..., Tensor], call: Call) -> list[Tensor]:
    """The function's result and its three gradients."""
    inputs = [x.detach().requires_grad_() for x in call.inputs]
    value, locations, weights = inputs
    result = function(value, call.shapes, locations, weights)
    return [result.detach(), *torch.autograd.grad(result, inputs, call.grad)]


def expected(call: Call) -> list[Tensor]:
    """What PyTorch's version gives in float64 for the very numbers of `call`."""
    if call.value.dtype != torch.float64:  # computed in float32, so that finer locations are rounded first
        call = replace(call, locations=call.locations.float(), weights=call.weights.float())
    return results(ms_deform_attn_torch, call.map(Tensor.double))


def check(function: Callable[..., Tensor], call: Call) -> None:
    """Hold result and gradients to what PyTorch's version gives."""
    compare(results(function, call), expected(call), call)


def compare(found: Sequence[Tensor], wanted: Sequence[Tensor], call: Call) -> None:
    """Each in its own dtype, with the error of one rounding to it besides that of sums in what is computed in."""
    computed = torch.promote_types(call.value.dtype, torch.float32)
    for name, x, right, like in zip(NAMES, found, wanted, (call.value, *call.inputs), strict=True):
        assert (x.dtype, x.shape, x.device) == (like.dtype, right.shape, like.device), name
        largest = right.abs().max().item() if right.numel() else 0.0
        torch.testing.assert_close(
            x.double(),
            right,
            rtol=0.51 * torch.finfo(x.dtype).eps,
            atol=100 * torch.finfo(computed).eps * largest,
            msg=lambda words, name=name: f"{name}: {words}",
        )
