"""Linear layers give the same whichever library multiplies."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dndetr.models import linear
from dndetr.models.linear import Linear

SHAPES = [(600, 256), (2, 300, 256), (3, 2, 100, 256)]


@pytest.fixture
def used(monkeypatch):
    """What the convolution has computed so far."""
    found, convolve = [], F.conv2d

    def conv2d(*args, **options):
        found.append(convolve(*args, **options))
        return found[-1]

    monkeypatch.setattr(linear.F, "conv2d", conv2d)
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_large_products_and_their_gradients(used, shape, bias):
    layer, x = Linear(256, 96, bias=bias), torch.randn(shape, requires_grad=True)
    parameters = [x, *layer.parameters()]
    ours, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert len(used) == 1 and ours.is_contiguous()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(expected)
    for mine, theirs in zip(*(torch.autograd.grad(y, parameters, direction) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_tokens_that_lie_otherwise(used):
    layer, x = Linear(256, 96), torch.randn(256, 300, 2).permute(2, 1, 0)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-5)
    assert len(used) == 1


def test_nothing_is_copied(used):
    """What the convolution gives is handed out as it lies."""
    layer = Linear(256, 96)
    assert layer(torch.randn(600, 256)).data_ptr() == used[0].data_ptr()


def test_small_products_and_bf16_are_left_to_pytorch(used):
    layer = Linear(256, 96)
    layer(torch.randn(9, 256))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(600, 256)).dtype == torch.bfloat16
    assert not used
