"""The multi-label classifier: its parts by hand-made numbers."""

from __future__ import annotations

import pytest
import torch

from dndetr.labels.classify import Seen, average_precisions, exact_share, mean, pooled, standardised, train_head
from dndetr.models.structures import Feature


def test_pooling_is_average_and_maximum_of_what_is_no_padding():
    x = torch.tensor([[[[1.0, -3.0], [9.0, 9.0]]], [[[1.0, 2.0], [3.0, 4.0]]]])  # B 1 2 2
    padding = torch.zeros(2, 2, 2, dtype=torch.bool)
    padding[0, 1] = True
    assert pooled(Feature(x, padding)).tolist() == [[-1, 1], [2.5, 4]]
    assert pooled(Feature(x, None)).tolist() == [[4, 9], [2.5, 4]]


def test_average_precision_of_a_class_is_the_mean_precision_at_its_images():
    probabilities = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.7, 0.3, 0.5], [0.1, 0.4, 0.5]])
    present = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]).bool()
    found = average_precisions(probabilities, present)
    assert found == [pytest.approx((1 + 2 / 3) / 2), pytest.approx(1 / 4), None]
    assert mean(found) == pytest.approx((5 / 6 + 1 / 4) / 2)
    assert mean([None]) is None


def test_an_image_is_right_where_every_class_is():
    present = torch.tensor([[True, False], [True, False], [False, False]])
    assert exact_share(torch.tensor([[0.5, 0.49], [0.9, 0.5], [0.1, 0.0]]), present) == pytest.approx(2 / 3)


def test_features_are_scaled_by_the_training_images():
    train = Seen([1, 2], torch.tensor([[0.0, 5.0], [4.0, 5.0]]), torch.zeros(2, 1, dtype=torch.bool))
    val = Seen([3], torch.tensor([[6.0, 5.0]]), torch.zeros(1, 1, dtype=torch.bool))
    train, val = standardised(train, val)
    assert train.features.tolist() == [[-1, 0], [1, 0]] and val.features.tolist() == [[2, 0]]


def separable(images=200):
    features = torch.randn(images, 4, generator=torch.Generator().manual_seed(0))
    return Seen(list(range(images)), features, features[:, :2] > 0)


def test_the_head_learns_and_its_seed_decides_it():
    seen = separable()
    before = torch.random.get_rng_state()
    first, again, other = (train_head(seen, epochs=40, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    logits = first(seen.features)
    assert exact_share(logits.sigmoid(), seen.present) > 0.9
    assert torch.equal(logits, again(seen.features)) and not torch.equal(logits, other(seen.features))
