"""Multi-scale deformable attention against its definition, written as loops in float64."""

import math

import torch

from dndetr.models.deformable import ms_deform_attn


def by_definition(value, shapes, locations, weights):
    batch, _, heads, width = value.shape
    out = value.new_zeros(batch, locations.shape[1], heads, width)
    for b, q, h, l, p in torch.cartesian_prod(*(torch.arange(n) for n in locations.shape[:-1])).tolist():
        rows, columns = shapes[l].tolist()
        start = int(shapes[:l].prod(1).sum())
        x, y = locations[b, q, h, l, p, 0] * columns - 0.5, locations[b, q, h, l, p, 1] * rows - 0.5
        for i in (math.floor(y), math.floor(y) + 1):
            for j in (math.floor(x), math.floor(x) + 1):
                if 0 <= i < rows and 0 <= j < columns:
                    share = (1 - abs(y - i)) * (1 - abs(x - j)) * weights[b, q, h, l, p]
                    out[b, q, h] += share * value[b, start + i * columns + j, h]
    return out.flatten(2)


def test_it_samples_what_the_definition_says():
    torch.manual_seed(0)
    shapes = torch.tensor([[3, 5], [2, 2]])
    value = torch.randn(2, 19, 2, 3, dtype=torch.float64)
    locations = torch.rand(2, 4, 2, 2, 3, 2, dtype=torch.float64) * 1.4 - 0.2  # some lie outside of the image
    weights = torch.rand(2, 4, 2, 2, 3, dtype=torch.float64)
    expected = by_definition(value, shapes, locations, weights)
    torch.testing.assert_close(ms_deform_attn(value, shapes, locations, weights), expected)
    torch.testing.assert_close(ms_deform_attn(value, [(3, 5), (2, 2)], locations, weights), expected)


def test_gradients_are_right():
    torch.manual_seed(0)
    value = torch.randn(1, 6, 1, 2, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(1, 2, 1, 1, 2, 2, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    weights = torch.rand(1, 2, 1, 1, 2, dtype=torch.float64, requires_grad=True)
    shapes = torch.tensor([[2, 3]])
    assert torch.autograd.gradcheck(lambda v, p, w: ms_deform_attn(v, shapes, p, w), (value, locations, weights))


def test_no_query_and_no_image_are_no_crime():
    shapes = torch.tensor([[2, 2]])
    assert ms_deform_attn(torch.rand(1, 4, 2, 3), shapes, torch.rand(1, 0, 2, 1, 2, 2), torch.rand(1, 0, 2, 1, 2)).shape == (
        1,
        0,
        6,
    )
