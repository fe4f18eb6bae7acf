"""One step: parts of a batch add up to the whole, and what cannot be computed changes nothing."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from dndetr.console import UserError
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.structures import Images
from dndetr.tasks import Detection, KnownLabels, KnownObjects
from dndetr.training.learner import Learner, NotFinite
from dndetr.training.precision import check_precision
from tests.training.tiny import CLASSES, batch, frozen_statistics, halves, tiny_config, tiny_model

CPU = torch.device("cpu")
TASK = Detection(NoiseConfig(groups=2), CLASSES, seed=0)


def learner(**train) -> Learner:
    config = tiny_config(**train)
    return Learner(config, frozen_statistics(tiny_model(config)), CPU, steps_per_epoch=10)


def test_accumulated_parts_equal_the_whole_batch():
    images, targets = batch([3, 0, 1, 2])
    whole, parts = learner(clip=0.0), learner(clip=0.0, accumulate=2)
    gradients = []
    for each, pieces in ((whole, [(images, targets)]), (parts, halves(images, targets))):
        each.optimizer.zero_grad = lambda set_to_none=True: None  # keep the gradients to look at
        each.losses = each.step(pieces, TASK)
        gradients.append({name: p.grad for name, p in each.model.named_parameters()})
    torch.testing.assert_close(whole.losses, parts.losses)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", [KnownObjects, KnownLabels])
def test_parts_add_up_also_where_not_all_objects_are_wanted(task):
    """Each loss is divided by its own objects: those that are found, and those that are reconstructed."""
    images, targets = batch([3, 0, 4, 2])
    options = {"found": frozenset({0})} if task is KnownObjects else {}
    asked = task(NoiseConfig(groups=2), CLASSES, seed=0, **options)
    _, wanted = asked(targets)
    found, told = (sum(len(t.labels) for t in objects) for objects in (wanted.targets, wanted.reconstructed))
    assert 0 < found != told > 0
    counts = [found, told, 4, 9]  # and images, and all of their objects
    whole, parts = learner(clip=0.0), learner(clip=0.0, accumulate=2)
    torch.testing.assert_close(whole.count([wanted]), torch.tensor(counts, dtype=torch.float32))
    losses = [each.step(pieces, asked) for each, pieces in ((whole, [(images, targets)]), (parts, halves(images, targets)))]
    torch.testing.assert_close(*losses)


def test_losses_are_told_apart():
    images, targets = batch([2, 1])
    losses = learner().step([(images, targets)], TASK)
    assert {"loss", "dn_loss", "cls_0", "giou_1", "dn_box_1"} <= losses.keys()
    weights = {"cls": 1.0, "box": 5.0, "giou": 2.0}
    share = sum(weights[name[3:-2]] * value for name, value in losses.items() if name[:3] == "dn_" and name != "dn_loss")
    torch.testing.assert_close(losses["dn_loss"], share)
    assert losses["loss"] > losses["dn_loss"] > 0


def test_without_noise_nothing_is_denoised():
    images, targets = batch([2, 1])
    losses = learner().step([(images, targets)], Detection(None, CLASSES, seed=0))
    assert losses["dn_loss"] == 0
    assert not any(name.startswith("dn_") for name in losses.keys() - {"dn_loss"})


def test_noise_follows_from_epoch_and_image_alone():
    _, targets = batch([2, 3])
    together, _ = TASK.at(3)(targets)
    alone, _ = TASK.at(3)(targets[1:])
    later, _ = TASK.at(4)(targets)
    torch.testing.assert_close(together.denoise.boxes[1], alone.denoise.boxes[0])
    assert not torch.equal(together.denoise.boxes, later.denoise.boxes)


def unchanged(each: Learner, before: dict) -> None:
    torch.testing.assert_close(dict(each.model.state_dict()), before, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_stops_the_run_and_changes_no_weight():
    each = learner()
    before = copy.deepcopy(dict(each.model.state_dict()))
    each.model.anchors.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"step 1: the gradient is not finite \(image ids 0, 1\), no weight was changed"):
        each.step([batch([2, 1])], TASK)
    unchanged(each, before)


def test_losses_that_are_not_finite_are_named():
    each = learner()
    before = copy.deepcopy(dict(each.model.state_dict()))
    criterion, nan = each.criterion, torch.tensor(float("nan"))

    def spoilt(*args):
        losses = criterion(*args)
        return losses._replace(total=losses.total * nan, parts=losses.parts | {"dn_cls_0": nan})

    each.criterion = spoilt
    with pytest.raises(UserError, match="step 1: not finite: loss, dn_cls_0"):
        each.step([batch([2, 1])], TASK)
    unchanged(each, before)


def test_a_loss_alone_that_is_not_finite_is_not_learned_from():
    """Its gradient is finite: nothing else would tell."""
    each = learner()
    before = copy.deepcopy(dict(each.model.state_dict()))
    criterion = each.criterion
    each.criterion = lambda *args: (lambda losses: losses._replace(total=losses.total + math.inf))(criterion(*args))
    with pytest.raises(NotFinite, match="step 1: not finite: loss "):
        each.step([batch([2, 1])], TASK)
    unchanged(each, before)


def test_what_cannot_be_matched_reaches_the_encoders_heads_too():
    """Two stages: else the other processes would wait for their gradients."""
    config = tiny_config()
    config = replace(config, host=replace(config.host, two_stage=True))
    each = Learner(config, tiny_model(config), CPU, steps_per_epoch=10)

    def unmatched(*args):
        raise FloatingPointError("a prediction of decoder layer 0 is not finite")

    each.criterion = unmatched
    images, targets = batch([2, 1])
    each.backward(images, *TASK(targets), each.count([TASK(targets)[1]]))
    assert [name for name, p in each.model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_batch_norm_forgets_a_step_that_is_passed_over():
    """Its statistics had learned from a good part before the bad one came."""
    config = tiny_config(accumulate=2, skip_nonfinite=1, ema=0.5)
    each = Learner(config, tiny_model(config), CPU, steps_per_epoch=10)
    each.model.train()
    parts = halves(*batch([2, 1, 0, 3]))
    assert each.step(parts, TASK) is not None
    before = copy.deepcopy(each.state())
    parts[1][0].pixels[0, 0, 0, 0] = math.nan
    assert each.step(parts, TASK) is None
    after = each.state()
    assert (after.pop("step"), before.pop("step")) == (2, 1)
    assert (after.pop("skipped"), before.pop("skipped")) == (1, 0)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert each.step(halves(*batch([2, 1, 0, 3])), TASK)["loss"].isfinite()


def test_many_image_ids_are_cut_short():
    images, targets = batch([1] * 11)
    with pytest.raises(NotFinite, match=r"\(image ids 0, 1, 2, 3, 4, 5, 6, 7 and 3 more\)"):
        learner().step([(Images(images.pixels * math.nan), targets)], TASK)


def test_batches_without_any_object_are_learned_from():
    """Between others: every step has the same losses by name, and 0 for those of objects."""
    each = learner()
    losses = [each.step([batch(counts)], TASK) for counts in ([0, 0], [2, 1], [0, 0])]
    assert losses[0].keys() == losses[1].keys() == losses[2].keys()
    assert losses[0]["cls_0"] > 0 and losses[0]["box_0"] == losses[0]["dn_loss"] == 0
    assert losses[2]["loss"].isfinite()


def test_a_prediction_that_is_not_finite_is_named():
    images, targets = batch([2, 1])
    broken = Images(images.pixels * float("nan"))
    with pytest.raises(
        UserError,
        match=r"step 1: a prediction of decoder layer 0 for image 0 is not finite \(image ids",
    ):
        learner().step([(broken, targets)], TASK)


def test_clipping_bounds_the_step():
    images, targets = batch([3, 2])
    norms = []
    each = learner(clip=0.05)
    each.optimizer.zero_grad = lambda set_to_none=True: None
    each.step([(images, targets)], TASK)
    norms = torch.stack([p.grad.norm() for p in each.parameters])
    assert norms.norm() == pytest.approx(0.05, rel=1e-3)


def test_averaged_weights_follow_slowly():
    images, targets = batch([3, 2])
    each = learner(ema=0.25, lr=1e-2)
    states = []
    for _ in range(4):
        each.step([(images, targets)], TASK)
        states.append(each.model.anchors.detach().clone())
    expected = states[0]
    for step, state in enumerate(states[1:], start=1):  # the decay grows to its value: 2 / 11, then 3 / 12
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state
    torch.testing.assert_close(each.evaluated.anchors, expected)
    assert not torch.equal(states[2], states[3])


def test_fp16_needs_cuda():
    with pytest.raises(UserError, match="train.precision: fp16 needs CUDA"):
        learner(precision="fp16")
    config = tiny_config()
    with pytest.raises(UserError, match="eval.precision: fp16 needs CUDA"):
        check_precision(replace(config, eval=replace(config.eval, precision="fp16")), torch.device("cpu"))


def test_bf16_computes_the_losses_in_fp32():
    images, targets = batch([2, 1])
    losses = learner(precision="bf16").step([(images, targets)], TASK)
    full = learner().step([(images, targets)], TASK)
    assert losses["loss"].dtype == torch.float32
    assert losses["loss"] == pytest.approx(full["loss"].item(), rel=0.05)
    assert losses["loss"] != full["loss"]
