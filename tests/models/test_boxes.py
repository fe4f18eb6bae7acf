"""Box arithmetic against torchvision, and where torchvision has no answer."""

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from dndetr.models.boxes import area, cxcywh_to_xyxy, generalized_iou, inverse_sigmoid

UNIT = torch.tensor([0.0, 0.0, 1.0, 1.0])


def corner_boxes(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=rng)
    return torch.cat((corner, corner + 0.05 + size), dim=1)


def test_generalized_iou_is_torchvisions():
    a, b = corner_boxes(200, 0), corner_boxes(200, 1)
    expected = generalized_box_iou(a, b)
    torch.testing.assert_close(generalized_iou(a, b, eps=0), expected.diagonal())
    torch.testing.assert_close(generalized_iou(a[:, None], b, eps=0), expected)
    assert expected.min() < -0.5 and expected.max() > 0.8


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0.0, 0.0, 1.0, 1.0], 1.0),
        ([0.25, 0.25, 0.75, 0.75], 0.25),  # nested: the hull is the larger box
        ([2.0, 0.0, 3.0, 1.0], -1 / 3),  # disjoint: a third of the hull is empty
        ([1.0, 0.0, 2.0, 1.0], 0.0),  # an edge in common
        ([0.5, 0.0, 1.5, 1.0], 1 / 3),
    ],
)
def test_generalized_iou_by_hand(box, expected):
    for a, b in ((UNIT, torch.tensor(box)), (torch.tensor(box), UNIT)):
        assert generalized_iou(a, b).item() == pytest.approx(expected, abs=1e-5)


def test_empty_boxes_give_a_number_and_a_gradient():
    empty = torch.tensor([0.3, 0.4, 0.3, 0.4], requires_grad=True)
    value = generalized_iou(empty, torch.tensor([0.3, 0.4, 0.3, 0.4]))
    value.backward()
    assert value.item() == 0 and empty.grad.isfinite().all()
    assert generalized_iou(empty, UNIT).item() == pytest.approx(0, abs=1e-5)


def test_corners_are_torchvisions():
    boxes = torch.rand(7, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), box_convert(boxes, "cxcywh", "xyxy"))
    assert cxcywh_to_xyxy(torch.tensor([0.5, 0.25, 0.5, 0.125])).tolist() == [0.25, 0.1875, 0.75, 0.3125]


def test_areas():
    assert area(torch.tensor([[0.0, 0.0, 2.0, 3.0], [1.0, 1.0, 1.0, 5.0]])).tolist() == [6, 0]


def test_any_leading_shape():
    a, b = torch.rand(2, 3, 5, 4), torch.rand(5, 4)
    assert cxcywh_to_xyxy(a).shape == (2, 3, 5, 4)
    assert generalized_iou(a, b).shape == area(a).shape == (2, 3, 5)
    assert generalized_iou(torch.rand(2, 3, 1, 4), torch.rand(2, 1, 6, 4)).shape == (2, 3, 6)
    assert generalized_iou(torch.rand(0, 1, 4), b).shape == (0, 5)


def test_inverse_sigmoid_inverts():
    logits = torch.linspace(-6.9, 6.9, 101)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("eps", "bound"), [(1e-3, 6.907755), (1e-5, 11.512925)])
def test_inverse_sigmoid_is_bounded(eps, bound):
    ends = inverse_sigmoid(torch.tensor([-0.5, 0.0, eps / 2, 1 - eps / 2, 1.0, 1.5]), eps)
    assert ends.tolist() == pytest.approx([-bound, -bound, -bound, bound, bound, bound], abs=1e-2)
