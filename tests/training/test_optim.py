"""The optimiser's groups and the numbers of its schedule."""

import pytest

from dndetr.config import TrainConfig
from dndetr.training.optim import build_optimizer, rate_factor, set_rate
from tests.training.tiny import tiny_config, tiny_model


def test_two_groups_hold_every_trained_parameter_once():
    config = tiny_config(lr=1e-3, backbone_lr=1e-4, weight_decay=0.05)
    model = tiny_model(config)
    next(model.backbone.parameters()).requires_grad_(False)
    rest, backbone = build_optimizer(model, config.train).param_groups
    assert (rest["lr"], backbone["lr"]) == (1e-3, 1e-4)
    assert rest["weight_decay"] == backbone["weight_decay"] == 0.05
    named = {id(p): name for name, p in model.named_parameters()}
    assert all(named[id(p)].startswith("backbone.") for p in backbone["params"])
    assert not any(named[id(p)].startswith("backbone.") for p in rest["params"])
    assert len(rest["params"]) + len(backbone["params"]) == len(named) - 1


def test_a_backbone_rate_of_zero_freezes_the_backbone():
    config = tiny_config(backbone_lr=0.0)
    model = tiny_model(config)
    (group,) = build_optimizer(model, config.train).param_groups
    assert group["lr"] == config.train.lr
    assert not any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize(("step", "factor"), [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (14, 1.0), (15, 0.1), (19, 0.1)])
def test_warm_up_is_linear_and_a_fraction_of_the_drop_epoch_counts_steps(step, factor):
    config = TrainConfig(warmup_steps=4, drop_epoch=1.5)
    assert rate_factor(step, steps_per_epoch=10, config=config) == pytest.approx(factor)


def test_a_warm_up_takes_a_tenth_of_the_training_at_most():
    config = TrainConfig(warmup_steps=100, epochs=12, drop_epoch=12)
    rates = [rate_factor(step, steps_per_epoch=4, config=config) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert rate_factor(0, steps_per_epoch=1, config=TrainConfig(warmup_steps=100, epochs=9)) == 1.0


def test_the_rate_keeps_the_ratio_of_the_groups():
    config = tiny_config(lr=1e-3, backbone_lr=1e-4)
    optimizer = build_optimizer(tiny_model(config), config.train)
    set_rate(optimizer, 0.5)
    set_rate(optimizer, 0.1)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-4, 1e-5])
