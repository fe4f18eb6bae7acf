"""A detector whose classes are known by given vectors (models/labels.py), and the losses of classes that are held out."""

from __future__ import annotations

import math

import pytest
import torch

from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.denoising.queries import LabelEmbedding
from dndetr.models.heads import DetectionHeads
from dndetr.models.labels import EmbeddedClassifier, EmbeddedTable
from dndetr.models.matcher import MatchConfig, Matcher
from tests.training.tiny import CLASSES, batch, tiny_config, tiny_model

VECTORS = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(0))
SHORT = dict(rtol=1e-5, atol=1e-6)


def embedded(vectors=VECTORS):
    return tiny_model(tiny_config(), len(vectors), embeddings=vectors)


def test_rows_of_a_table_follow_the_vectors_and_the_unknown_row_is_learned():
    label = LabelEmbedding(CLASSES, 6, VECTORS)
    rows = label(torch.arange(CLASSES + 1), 1.0)
    unit = VECTORS / VECTORS.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows[:-1, :-1], label.table.projection(unit), **SHORT)
    assert torch.equal(rows[-1, :-1], label.table.unknown)
    assert rows[:, -1].tolist() == [1.0] * (CLASSES + 1)
    assert torch.equal(label.unknowns(2)[0, :-1], label.table.unknown)


def test_tables_and_heads_begin_as_large_as_learned_ones():
    torch.manual_seed(0)
    vectors, width = torch.randn(50, 384), 128
    table, learned = EmbeddedTable(vectors, width).weight, torch.nn.Embedding(51, width).weight
    assert table.std().item() == pytest.approx(learned.std().item(), rel=0.1)
    states = torch.randn(100, width)
    logits, theirs = EmbeddedClassifier(width, vectors)(states), torch.nn.Linear(width, 50)(states)
    assert logits.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


@pytest.mark.parametrize("shared", [True, False])
def test_every_class_begins_at_a_probability_of_one_in_a_hundred(shared):
    heads = DetectionHeads(8, CLASSES, 2, shared=shared, eps=1e-3, embeddings=VECTORS)
    logits = heads.logits(1, torch.zeros(1, 8))
    assert logits.shape == (1, CLASSES)
    assert logits.sigmoid().tolist() == [[pytest.approx(0.01)] * CLASSES]
    assert heads.cls[0].bias.item() == pytest.approx(-math.log(99))


def test_a_class_has_the_same_logits_whatever_the_others_are():
    images, _ = batch([1, 2])
    few, more = embedded().eval(), embedded(torch.cat((torch.ones(2, 8), VECTORS))).eval()
    weights = {key: value for key, value in few.state_dict().items() if not key.endswith("embeddings")}
    left, unknown = more.load_state_dict(weights, strict=False)
    assert not unknown and all(key.endswith("embeddings") for key in left)
    torch.testing.assert_close(more(images).logits[..., 2:], few(images).logits, **SHORT)
    torch.testing.assert_close(more(images).boxes, few(images).boxes, **SHORT)


def test_without_vectors_nothing_is_another_parameter():
    keys = tiny_model(tiny_config()).state_dict()
    assert "label.table.weight" in keys and "heads.cls.1.weight" in keys
    assert not [key for key in keys if "embeddings" in key or "projection" in key]


def losses(taught=None, model=None):
    model = model or embedded()
    images, targets = batch([2, 0])
    targets = [t if not len(t.labels) else type(t)(torch.tensor([0, 1]), t.boxes) for t in targets]
    output = model(images)
    output.logits.retain_grad()
    wanted = Wanted(targets, taught=None if taught is None else torch.tensor(taught))
    found = Criterion(LossConfig(), Matcher(MatchConfig()))(output, wanted, 2)
    found.total.backward()
    return found, output.logits.grad


def test_a_class_that_is_held_out_has_no_loss_and_no_gradient():
    everything, gradient = losses()
    assert gradient[..., 2].abs().min() > 0
    part, gradient = losses([True, True, False])
    assert gradient[..., 2].abs().max() == 0 and gradient[..., :2].abs().min() > 0
    assert 0 < part.parts["cls_1"] < everything.parts["cls_1"]
    assert part.parts["box_1"] == everything.parts["box_1"]


def test_the_loss_of_held_out_classes_is_that_of_a_detector_without_them():
    model, smaller = embedded(), embedded(VECTORS[:2])
    weights = {key: value for key, value in model.state_dict().items() if not key.endswith("embeddings")}
    smaller.load_state_dict(weights, strict=False)
    (with_them, _), (without, _) = losses([True, True, False], model), losses(model=smaller)
    torch.testing.assert_close(with_them.total, without.total, **SHORT)
