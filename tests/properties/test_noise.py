"""The noise of Sec. 4.3 for any objects, settings and batches."""

from dataclasses import dataclass, replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from dndetr.models.denoising.noise import NoiseConfig, NoisedTargets, noise_targets
from dndetr.models.structures import Target
from tests.properties import repeatable

share = st.floats(0, 1, width=32)


@dataclass(frozen=True)
class Case:
    """A batch and its noise."""

    targets: list[Target]
    config: NoiseConfig
    classes: int
    seeds: list[int]  # by image

    def noised(self) -> NoisedTargets:
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        return noise_targets(self.targets, self.config, self.classes, generators)

    def slots(self) -> list[list[dict[str, torch.Tensor]]]:
        """What is in the slots of each image, and of each of its groups: label, box and object by name."""
        noised = self.noised()
        parts = {name: getattr(noised, name).unflatten(1, (noised.groups, -1)) for name in ("labels", "boxes", "objects")}
        held = noised.valid.unflatten(1, (noised.groups, -1))
        return [
            [{name: part[b, p][held[b, p]] for name, part in parts.items()} for p in range(noised.groups)]
            for b in range(len(self.targets))
        ]


@st.composite
def targets(draw, classes: int) -> Target:
    boxes = draw(st.lists(st.tuples(share, share, share, share), max_size=5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=len(boxes), max_size=len(boxes)))
    return Target(torch.tensor(labels, dtype=torch.long), torch.tensor(boxes, dtype=torch.float32).view(-1, 4))


@st.composite
def cases(draw) -> Case:
    classes, groups = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    batch = draw(st.lists(targets(classes), min_size=1, max_size=4))
    config = NoiseConfig(
        groups=groups,
        center_shift=draw(share),
        box_scale=draw(share),
        label_flip=draw(share | st.sampled_from([0.0, 1.0])),
        labels=draw(st.booleans()),
        max_queries=draw(st.just(2000) | st.integers(groups, 4 * groups)),
    )
    return Case(batch, config, classes, draw(st.lists(st.integers(0, 2**32), min_size=len(batch), max_size=len(batch))))


@given(cases())
@repeatable
def test_centres_move_and_sizes_change_within_their_scales(case):
    for target, groups in zip(case.targets, case.slots(), strict=True):
        for slots in groups:
            clean, noised = target.boxes[slots["objects"]], slots["boxes"]
            size = clean[:, 2:]
            assert ((noised >= 0) & (noised <= 1)).all()
            assert ((noised[:, :2] - clean[:, :2]).abs() <= case.config.center_shift * size / 2 + 1e-6).all()
            assert ((noised[:, 2:] - size).abs() <= case.config.box_scale * size + 1e-6).all()


@given(cases())
@repeatable
def test_labels_flip_to_other_classes_only(case):
    for target, groups in zip(case.targets, case.slots(), strict=True):
        for slots in groups:
            clean, noised = target.labels[slots["objects"]], slots["labels"]
            if not case.config.labels:
                assert (noised == case.classes).all()
                continue
            assert ((noised >= 0) & (noised < case.classes)).all()
            if case.config.label_flip == 0 or case.classes == 1:
                assert torch.equal(noised, clean)
            if case.config.label_flip == 1 and case.classes > 1:
                assert (noised != clean).all()


@given(share, st.integers(2, 5), st.integers(0, 1000))
@repeatable
def test_labels_flip_at_the_rate_gamma_to_all_others_alike(gamma, classes, seed):
    many = 4000
    target = Target(torch.full((many,), 1), torch.full((many, 4), 0.5))
    case = Case([target], NoiseConfig(groups=1, label_flip=gamma, max_queries=many), classes, [seed])
    flipped = case.noised().labels != 1
    deviation = (gamma * (1 - gamma) / many) ** 0.5
    assert abs(float(flipped.float().mean()) - gamma) <= 5 * deviation + 1e-3
    counts = case.noised().labels[flipped].bincount(minlength=classes).float()
    expected = flipped.sum() / (classes - 1)
    assert ((counts - expected).abs()[torch.arange(classes) != 1] <= 6 * expected.sqrt() + 1).all()


@given(cases())
@repeatable
def test_every_group_holds_the_same_objects_each_once_and_in_order(case):
    for target, groups in zip(case.targets, case.slots(), strict=True):
        count = min(len(target.labels), case.config.max_objects)
        for slots in groups:
            assert torch.equal(slots["objects"], groups[0]["objects"])
            assert len(slots["objects"]) == count and (slots["objects"].diff() > 0).all()
            assert count < len(target.labels) or slots["objects"].tolist() == list(range(count))


@given(cases())
@repeatable
def test_what_is_no_object_is_an_empty_slot(case):
    noised = case.noised()
    most = max(min(len(target.labels), case.config.max_objects) for target in case.targets)
    assert (noised.groups, noised.slots) == (case.config.groups, max(1, most))
    assert noised.labels[~noised.valid].eq(case.classes).all() and noised.boxes[~noised.valid].eq(0.5).all()
    for target, valid in zip(case.targets, noised.valid.unflatten(1, (noised.groups, -1)), strict=True):
        count = min(len(target.labels), case.config.max_objects)
        assert valid[:, :count].all() and not valid[:, count:].any()


@given(cases())
@repeatable
def test_reconstruction_assigns_every_full_slot_to_its_object(case):
    noised = case.noised()
    image, query, object_ = noised.assignment()
    assert torch.equal(torch.stack((image, query), dim=1), noised.valid.nonzero())
    still = replace(case, config=replace(case.config, center_shift=0, box_scale=0, label_flip=0, labels=True)).noised()
    for i, q, o in zip(image.tolist(), query.tolist(), object_.tolist(), strict=True):
        assert still.labels[i, q] == case.targets[i].labels[o]
        torch.testing.assert_close(still.boxes[i, q], case.targets[i].boxes[o])


@given(cases(), st.randoms())
@repeatable
def test_an_image_has_its_own_noise_in_any_batch_and_order(case, random):
    order = list(range(len(case.targets)))
    random.shuffle(order)
    together = case.slots()
    shuffled = replace(case, targets=[case.targets[i] for i in order], seeds=[case.seeds[i] for i in order]).slots()
    for place, i in enumerate(order):
        (alone,) = replace(case, targets=[case.targets[i]], seeds=[case.seeds[i]]).slots()
        for p, slots in enumerate(alone):
            for name, values in slots.items():
                assert torch.equal(values, together[i][p][name]) and torch.equal(values, shuffled[place][p][name])
