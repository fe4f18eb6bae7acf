"""The noise of Sec. 4.3, the attention mask of Eq. 7 and the queries of Sec. 4.5."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.denoising.noise import NoiseConfig, noise_targets
from dndetr.models.denoising.queries import LabelEmbedding
from dndetr.models.structures import FieldErrors, Target

CLASSES = 6


def target(objects: int, seed: int = 0) -> Target:
    rng = torch.Generator().manual_seed(seed)
    boxes = torch.cat(
        (0.3 + 0.4 * torch.rand(objects, 2, generator=rng), 0.1 + 0.2 * torch.rand(objects, 2, generator=rng)), 1
    )
    return Target(torch.randint(0, CLASSES, (objects,), generator=rng), boxes, image_id=seed)


def noised(targets, seed=0, num_classes=CLASSES, **config):
    rng = [torch.Generator().manual_seed(seed + i) for i in range(len(targets))]
    return noise_targets(targets, NoiseConfig(**config), num_classes, rng)


def test_scales_of_zero_give_the_objects_back():
    clean = target(4)
    exact = noised([clean], groups=3, center_shift=0, box_scale=0, label_flip=0)
    torch.testing.assert_close(exact.boxes, clean.boxes.repeat(3, 1)[None])
    assert torch.equal(exact.labels, clean.labels.repeat(3)[None])


def test_noise_stays_within_its_bounds_and_fills_them():
    clean = target(50)
    boxes = noised([clean], groups=40, center_shift=0.4, box_scale=0.3).boxes.view(40, 50, 4)
    size = clean.boxes[:, 2:]
    shift = (boxes[..., :2] - clean.boxes[:, :2]).abs() / size
    scale = boxes[..., 2:] / size
    assert shift.max() <= 0.2 and shift.max() > 0.195  # |dx| < lambda1 * w / 2
    assert scale.min() >= 0.7 and scale.max() <= 1.3 and scale.min() < 0.71 and scale.max() > 1.29
    assert abs(float(scale.mean()) - 1) < 0.01


def test_each_box_noise_is_switched_off_by_itself():
    clean = target(5)
    shifted = noised([clean], groups=1, center_shift=0.4, box_scale=0).boxes[0]
    scaled = noised([clean], groups=1, center_shift=0, box_scale=0.4).boxes[0]
    torch.testing.assert_close(shifted[:, 2:], clean.boxes[:, 2:])
    torch.testing.assert_close(scaled[:, :2], clean.boxes[:, :2])
    assert (shifted[:, :2] != clean.boxes[:, :2]).all() and (scaled[:, 2:] != clean.boxes[:, 2:]).all()


def test_gamma_is_the_real_rate_of_flips_and_flips_reach_every_other_class():
    clean = Target(torch.full((500,), 2), target(500).boxes)
    labels = noised([clean], groups=20, label_flip=0.2).labels
    assert abs(float((labels != 2).float().mean()) - 0.2) < 0.02
    assert labels[labels != 2].unique().tolist() == [0, 1, 3, 4, 5]


def test_a_single_class_cannot_flip():
    only = Target(torch.zeros(10, dtype=torch.long), target(10).boxes)
    assert noised([only], num_classes=1, label_flip=1.0).labels.eq(0).all()


def test_box_denoising_only_tells_the_unknown_class():
    assert noised([target(3)], labels=False).labels.eq(CLASSES).all()


def test_slots_follow_the_fullest_image_and_there_is_always_one():
    some = noised([target(3), target(0), target(1)], groups=2)
    assert (some.groups, some.slots) == (2, 3)
    assert some.valid.view(3, 2, 3).sum(-1).tolist() == [[3, 3], [0, 0], [1, 1]]
    assert noised([target(0)], groups=2).slots == 1


def test_reconstruction_is_known():
    image, query, object_ = noised([target(2), target(3)], groups=2).assignment()
    assert image.tolist() == [0] * 4 + [1] * 6
    assert query.tolist() == [0, 1, 3, 4, 0, 1, 2, 3, 4, 5]
    assert object_.tolist() == [0, 1, 0, 1, 0, 1, 2, 0, 1, 2]


def test_an_image_has_the_same_noise_in_any_batch():
    a, b = target(2, seed=1), target(4, seed=2)
    rng = {1: 11, 2: 22}

    def noise(*batch):
        return noise_targets(batch, NoiseConfig(), CLASSES, [torch.Generator().manual_seed(rng[t.image_id]) for t in batch])

    together, alone = noise(a, b), noise(a)
    assert torch.equal(together.boxes[0][together.valid[0]], alone.boxes[0])


def test_of_too_many_objects_some_are_denoised_in_every_group():
    crowd, few = target(9), target(2, seed=1)
    some = noised([crowd, few], groups=3, max_queries=17, center_shift=0, box_scale=0, label_flip=0)
    assert (some.groups, some.slots) == (3, 5)
    assert some.valid.view(2, 3, 5).sum(-1).tolist() == [[5] * 3, [2] * 3]
    image, query, object_ = some.assignment()
    torch.testing.assert_close(some.boxes[image, query][image == 0], crowd.boxes[object_[image == 0]])
    assert torch.equal(some.labels[image, query][image == 0], crowd.labels[object_[image == 0]])
    groups = object_[image == 0].view(3, 5)
    assert (groups == groups[0]).all() and (groups[0].diff() > 0).all()
    assert object_[image == 1].tolist() == [0, 1] * 3


def test_which_objects_are_denoised_is_drawn_evenly_from_all():
    """So that each class has the share that it has in the image: over 400 draws of 3 of 12 each object comes 100 times."""
    crowd, chosen = target(12), torch.zeros(12)
    for seed in range(400):
        chosen[noised([crowd], seed=seed, groups=2, max_queries=7).objects[0, :3]] += 1
    assert chosen.sum() == 1200
    assert ((chosen - 100).abs() < 45).all()  # five standard deviations


@pytest.mark.parametrize("objects", [0, 3, 4])
def test_the_bound_changes_nothing_where_it_is_not_reached(objects):
    clean = target(objects)
    bounded, free = (noised([clean], groups=2, max_queries=bound) for bound in (8, 10**9))
    assert all(torch.equal(getattr(bounded, name), getattr(free, name)) for name in ("labels", "boxes", "valid", "objects"))


def test_the_noise_of_a_crowded_image_is_the_same_in_any_batch():
    crowd, other = target(9), target(30, seed=1)
    together, alone = (noised(images, groups=2, max_queries=12) for images in ([crowd, other], [crowd]))
    assert torch.equal(together.boxes[0], alone.boxes[0]) and torch.equal(together.objects[0], alone.objects[0])


def test_contrastive_noise_adds_to_each_object_a_negative_with_one_to_two_times_the_noise():
    """In the second half of each group."""
    clean, scales = target(50), {"center_shift": 0.4, "box_scale": 0.3, "label_flip": 0.2}
    both = noised([clean], groups=40, contrastive=True, max_queries=4000, **scales)
    assert (both.groups, both.slots) == (40, 100)
    boxes, size = both.boxes.view(40, 2, 50, 4), clean.boxes[:, 2:]
    amounts = torch.cat(((boxes[..., :2] - clean.boxes[:, :2]) / size / 0.2, (boxes[..., 2:] / size - 1) / 0.3), dim=-1).abs()
    positives, negatives = amounts.unbind(1)
    assert positives.min() < 0.01 and positives.max() <= 1.001 and positives.max() > 0.99
    assert negatives.min() >= 0.999 and negatives.min() < 1.01 and negatives.max() <= 2.001 and negatives.max() > 1.99
    assert torch.equal(both.negative, (torch.arange(4000) % 100 >= 50)[None])
    flipped = (both.labels.view(40, 2, 50) != clean.labels).float().mean((0, 2))
    assert ((flipped - 0.2).abs() < 0.04).all()  # of both
    assert torch.equal(both.objects.view(40, 2, 50), torch.arange(50).expand(40, 2, -1))


def test_negatives_answer_for_nothing():
    some = noised([target(2), target(0), target(1)], groups=2, contrastive=True)
    assert (some.groups, some.slots) == (2, 4)
    image, query, object_ = some.assignment()
    assert (image.tolist(), query.tolist(), object_.tolist()) == ([0] * 4 + [2] * 2, [0, 1, 4, 5, 0, 4], [0, 1, 0, 1, 0, 0])
    image, query = some.negatives()
    assert (image.tolist(), query.tolist()) == ([0] * 4 + [2] * 2, [2, 3, 6, 7, 2, 6])
    plain = noised([target(2), target(0)], groups=2)
    assert not plain.negative.any() and len(plain.negatives()[0]) == 0


def test_the_bound_counts_negatives():
    some = noised([target(9)], groups=3, max_queries=17, contrastive=True)
    assert (some.groups, some.slots, int(some.valid.sum())) == (3, 4, 12)
    assert torch.equal(*some.objects.view(3, 2, 2).unbind(1))  # of the same objects
    with pytest.raises(FieldErrors, match=r"max_queries must be at least 2 \* groups \(6\): .*, got 5"):
        NoiseConfig(groups=3, max_queries=5, contrastive=True)
    with pytest.raises(FieldErrors, match="contrastive must be false where center_shift and box_scale are 0"):
        NoiseConfig(contrastive=True, center_shift=0, box_scale=0)


def test_targets_are_not_changed():
    clean = target(5)
    labels, boxes = clean.labels.clone(), clean.boxes.clone()
    noised([clean], label_flip=1.0)
    assert torch.equal(clean.labels, labels) and torch.equal(clean.boxes, boxes)


@given(
    st.floats(0, 1), st.floats(0.01, 1), st.integers(1, 4), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.booleans()
)
@settings(max_examples=50, deadline=None)
def test_noised_boxes_are_always_boxes(shift, scale, groups, counts, contrastive):
    batch = [target(m, i) for i, m in enumerate(counts)]
    boxes = noised(batch, groups=groups, center_shift=shift, box_scale=scale, contrastive=contrastive).boxes
    assert boxes.isfinite().all() and boxes.min() >= 0 and boxes.max() <= 1


def test_bad_settings_are_named_all_at_once():
    with pytest.raises(FieldErrors) as error:
        NoiseConfig(groups=0, label_flip=2, max_queries=-1)
    assert set(error.value.problems) == {"groups", "label_flip", "max_queries"}
    with pytest.raises(FieldErrors, match=r"max_queries must be at least groups \(7\): an object is in each of them, got 6"):
        NoiseConfig(groups=7, max_queries=6)


@pytest.mark.parametrize(("p", "m", "n"), [(1, 1, 2), (2, 3, 4), (5, 1, 3), (3, 7, 1)])
def test_the_mask_is_equation_7(p, m, n):
    blocked = QueryLayout(p, m, n).blocked()
    for i in range(p * m + n):
        for j in range(p * m + n):
            other_group = j < p * m and i // m != j // m
            matching_to_denoising = j < p * m and i >= p * m
            assert bool(blocked[i, j]) == (other_group or matching_to_denoising), (i, j)


def test_without_isolation_nothing_is_blocked():
    assert not QueryLayout(2, 3, 4, isolated=False).blocked().any()


def test_a_label_embedding_may_do_without_the_indicator():
    label = LabelEmbedding(CLASSES, width=8, indicator=False)
    assert torch.equal(label(torch.tensor([0, CLASSES]), 1.0), label.table.weight[[0, CLASSES]])
    assert label.table.weight.shape == (CLASSES + 1, 8) and label.contents(3, None).shape == (3, 8)


def test_label_embedding_ends_with_the_indicator():
    label = LabelEmbedding(CLASSES, width=8)
    told = label(torch.tensor([[0, CLASSES]]), 1.0)
    assert told.shape == (1, 2, 8) and told[..., -1].eq(1).all()
    assert label.unknowns(3)[:, -1].eq(0).all()
    assert torch.equal(label.unknowns(1)[0, :-1], label.table.weight[CLASSES])
