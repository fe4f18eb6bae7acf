"""Matching and losses by hand-made cases; tests/hosts/test_official.py compares them with the reference."""

import pytest
import torch
from torch import nn

from dndetr.models.criterion import Criterion, LossConfig, Wanted, softplus
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.structures import Output, Target


def target(*objects):
    labels, boxes = zip(*objects, strict=True) if objects else ((), ())
    return Target(torch.tensor(labels, dtype=torch.long), torch.tensor(boxes, dtype=torch.float).view(-1, 4))


def output(logits, boxes):
    return Output(logits, boxes, boxes[0], QueryLayout(0, 0, boxes.shape[2]))


LEFT, RIGHT = (0.25, 0.5, 0.2, 0.4), (0.75, 0.5, 0.2, 0.4)


def test_each_object_gets_the_query_that_is_there():
    boxes = torch.tensor([[RIGHT, (0.5, 0.5, 1, 1), LEFT]])[None]  # L B N 4
    (match,) = Matcher(MatchConfig())(output(torch.zeros(1, 1, 3, 2), boxes), [target((0, LEFT), (1, RIGHT))])
    assert match.query.tolist() == [0, 2] and match.object.tolist() == [1, 0]


def test_the_class_decides_between_equal_boxes():
    logits = torch.tensor([[[[2.0, -2.0], [-2.0, 2.0]]]])
    boxes = torch.tensor([[LEFT, LEFT]])[None]
    (match,) = Matcher(MatchConfig())(output(logits, boxes), [target((1, LEFT), (0, LEFT))])
    assert match.query.tolist() == [0, 1] and match.object.tolist() == [1, 0]


def test_more_objects_than_queries_and_none_at_all():
    boxes = torch.rand(2, 2, 3, 4)
    crowd = target(*[(0, LEFT)] * 5)
    for match in Matcher(MatchConfig())(output(torch.zeros(2, 2, 3, 1), boxes), [crowd, target()]):
        assert len(match.query) == 3 and match.image.eq(0).all()
    assert len(Matcher(MatchConfig())(output(torch.zeros(2, 1, 3, 1), boxes[:, :1]), [target()])[1].query) == 0


def test_a_prediction_that_is_not_finite_is_named():
    boxes = torch.rand(2, 1, 3, 4)
    boxes[1, 0, 1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="layer 1 for image 0"):
        Matcher(MatchConfig())(output(torch.zeros(2, 1, 3, 1), boxes), [target((0, LEFT))])


def test_a_perfect_box_costs_nothing_and_classes_are_counted_by_objects():
    boxes = torch.tensor([[LEFT, RIGHT]])[None].requires_grad_()
    logits = torch.full((1, 1, 2, 3), -9.0)
    logits[0, 0, 0, 1] = 9.0
    losses = Criterion(LossConfig(), Matcher(MatchConfig()))(output(logits, boxes), Wanted([target((1, LEFT))]), 1)
    assert losses.parts["box_0"] == 0 and losses.parts["giou_0"] < 1e-4 and losses.parts["cls_0"] < 1e-6
    worse = Criterion(LossConfig(), Matcher(MatchConfig()))(output(-logits, boxes), Wanted([target((1, LEFT))]), 2)
    half = Criterion(LossConfig(), Matcher(MatchConfig()))(output(-logits, boxes), Wanted([target((1, LEFT))]), 4)
    torch.testing.assert_close(worse.total, 2 * half.total)


def test_without_objects_only_the_background_is_taught():
    logits = torch.zeros(2, 1, 3, 4, requires_grad=True)
    boxes = torch.rand(2, 1, 3, 4, requires_grad=True)
    losses = Criterion(LossConfig(), Matcher(MatchConfig()))(output(logits, boxes), Wanted([target()]), 0)
    losses.total.backward()
    assert (logits.grad > 0).all() and boxes.grad.eq(0).all()


def test_untold_how_many_objects_the_step_has_the_criterion_counts_those_that_are_wanted():
    wanted = Wanted([target((1, LEFT), (0, RIGHT)), target((2, LEFT))])
    found = output(torch.linspace(-2, 2, 24).view(1, 2, 4, 3), torch.linspace(0.2, 0.8, 32).view(1, 2, 4, 4))
    criterion = Criterion(LossConfig(), Matcher(MatchConfig()))
    assert criterion(found, wanted).total == criterion(found, wanted, 3).total != criterion(found, wanted, 2).total


def test_softplus_is_pytorchs_with_its_gradient_also_where_a_logit_is_0_or_huge():
    x = torch.cat((torch.linspace(-30, 30, 601), torch.tensor([0.0, -0.0, 1e-9, 120.0, -120.0, 1e30]))).requires_grad_()
    torch.testing.assert_close(softplus(x), nn.functional.softplus(x), rtol=1e-6, atol=2e-7)
    (ours,), (theirs,) = (torch.autograd.grad(f(x).sum(), x) for f in (softplus, nn.functional.softplus))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-7)
    assert softplus(torch.tensor(float("nan"))).isnan()
