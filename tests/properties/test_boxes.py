"""Box arithmetic for any boxes, against exact arithmetic in double precision."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dndetr.models.boxes import cxcywh_to_xyxy, generalized_iou, inverse_sigmoid
from tests.properties import repeatable

EPS = 1e-6
share = st.floats(0, 1, width=32)
box = st.tuples(share, share, share | st.just(0.0), share | st.just(0.0))  # cxcywh, without extent often enough
pairs = st.lists(st.tuples(box, box), min_size=1, max_size=8)


def corners(pairs) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.tensor(pairs, dtype=torch.float32).unbind(1)
    return cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)


def reference(a: list[float], b: list[float]) -> float:
    """GIoU in Python's doubles, each term as the paper of GIoU has it."""

    def size(x0, y0, x1, y1):
        return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)

    overlap = size(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    hull = size(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    union = size(*a) + size(*b) - overlap
    return overlap / (union + EPS) - (hull - union) / (hull + EPS)


@given(pairs)
@repeatable
def test_generalized_iou_is_that_of_double_precision(pairs):
    a, b = corners(pairs)
    expected = [reference(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(generalized_iou(a, b), torch.tensor(expected), atol=2e-6, rtol=0)


@given(pairs)
@repeatable
def test_generalized_iou_is_symmetric_bounded_and_never_above_iou(pairs):
    a, b = corners(pairs)
    value = generalized_iou(a, b)
    torch.testing.assert_close(value, generalized_iou(b, a), atol=1e-6, rtol=0)
    assert value.isfinite().all() and value.min() >= -1 - 1e-6 and value.max() <= 1 + 1e-6
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - overlap
    assert (value <= overlap / (union + EPS) + 1e-6).all()


@given(pairs)
@repeatable
def test_a_box_equals_itself_as_far_as_it_has_an_area(pairs):
    a, _ = corners(pairs)
    size = (a[:, 2:] - a[:, :2]).prod(1)
    torch.testing.assert_close(generalized_iou(a, a), size / (size + EPS), atol=1e-6, rtol=0)


@given(pairs)
@repeatable
def test_every_pair_is_compared_as_it_is_alone(pairs):
    a, b = corners(pairs)
    table = generalized_iou(a[:, None], b)
    for i in range(len(a)):
        for j in range(len(b)):
            torch.testing.assert_close(table[i, j], generalized_iou(a[i], b[j]), atol=1e-7, rtol=0)


@given(pairs)
@repeatable
def test_gradients_of_any_pair_are_finite(pairs):
    a, b = (x.requires_grad_() for x in corners(pairs))
    generalized_iou(a, b).sum().backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()


@given(st.lists(box, min_size=1, max_size=8))
@repeatable
def test_centre_and_size_come_back_from_the_corners(boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32)
    x0y0, x1y1 = cxcywh_to_xyxy(boxes).split(2, dim=-1)
    assert (x0y0 <= x1y1).all()
    torch.testing.assert_close(torch.cat(((x0y0 + x1y1) / 2, x1y1 - x0y0), dim=-1), boxes, atol=2e-7, rtol=0)


@given(st.lists(st.floats(-1, 2, width=32), min_size=2, max_size=20), st.sampled_from([1e-3, 1e-5]))
@repeatable
def test_inverse_sigmoid_inverts_rises_and_is_odd(values, eps):
    x = torch.tensor(sorted(values), requires_grad=True)
    logits = inverse_sigmoid(x, eps)
    torch.testing.assert_close(logits.sigmoid(), x.clamp(eps, 1 - eps), atol=2 * eps**2 + 1e-6, rtol=0)
    assert (logits.diff() >= 0).all()
    torch.testing.assert_close(inverse_sigmoid(1 - x, eps), -logits, atol=1e-2, rtol=1e-2)
    logits.sum().backward()
    assert x.grad.isfinite().all()
