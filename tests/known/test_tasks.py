"""What is told and what is wanted: known objects and known labels in training (Sec. 5.7.1)."""

import pytest
import torch

from dndetr.config import TaskConfig
from dndetr.console import UserError
from dndetr.data.coco import Categories
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.structures import Target
from dndetr.resolve import load_preset
from dndetr.tasks import Detection, HeldOut, KnownLabels, KnownObjects, build_task
from tests.training.tiny import tiny_config

CLASSES = 4
EXACT = NoiseConfig(groups=1, center_shift=0, box_scale=0, label_flip=0)


def target(*labels: int, image_id: int = 1) -> Target:
    """Objects of these classes, each at a place of its own."""
    boxes = torch.tensor([[0.1 * (i + 1), 0.2, 0.1, 0.1] for i in range(len(labels))]).reshape(-1, 4)
    return Target(torch.tensor(labels, dtype=torch.long), boxes, image_id)


def test_objects_of_other_classes_do_not_exist_in_detection():
    known, wanted = HeldOut(Detection(EXACT, 2, seed=0), (1, 3), CLASSES)([target(0, 1, 3, 2), target(0)])
    assert [t.labels.tolist() for t in wanted.targets] == [[1, 3], []]
    assert known.isolated and known.denoise.labels.tolist() == [[1, 3], [CLASSES, CLASSES]]
    assert wanted.taught.tolist() == [False, True, False, True]


def test_known_objects_are_told_and_the_others_wanted():
    targets = [target(0, 1, 3, 2), target(1, 1)]
    known, wanted = KnownObjects(EXACT, CLASSES, seed=0, found=frozenset({1, 3}))(targets)
    assert [t.labels.tolist() for t in wanted.targets] == [[1, 3], [1, 1]]
    torch.testing.assert_close(wanted.targets[0].boxes, targets[0].boxes[[1, 2]])
    assert not known.isolated.any()  # in an image without known objects nothing is denoised either
    assert known.denoise.labels.tolist() == [[0, 2], [CLASSES, CLASSES]]
    torch.testing.assert_close(known.denoise.boxes[0], targets[0].boxes[[0, 3]])
    assert [t.labels.tolist() for t in wanted.reconstructed] == [[0, 2], []]
    assert wanted.known.object.tolist() == [0, 1] and wanted.known.image.tolist() == [0, 0]


def test_without_classes_each_object_may_be_known_and_every_epoch_anew():
    task = KnownObjects(EXACT, CLASSES, seed=0)
    targets = [target(*[i % CLASSES for i in range(8)], image_id=i) for i in range(40)]
    shares = []
    for epoch in (1, 2):
        known, wanted = task.at(epoch)(targets)
        for given, ordinary, told, rest in zip(targets, known.isolated, wanted.reconstructed, wanted.targets, strict=True):
            found = rest.boxes if ordinary else torch.cat((told.boxes, rest.boxes))
            torch.testing.assert_close(found[:, 0].sort().values, given.boxes[:, 0])  # each is told or wanted, none is both
            assert not ordinary or len(told.labels) == 8  # nothing is told, and everything denoised
        shares.append([8 - len(rest.labels) for rest in wanted.targets])
    assert shares[0] != shares[1]
    assert 20 <= shares[0].count(0) < 32 and max(shares[0]) >= 7  # nothing in more than half of the 40, else up to all
    assert 50 < sum(shares[0]) < 110  # of 320, a quarter on average
    again = task.at(2)([targets[7]])[1].targets[0]
    assert 8 - len(again.labels) == shares[1][7]  # the batch does not matter


def test_one_class_of_the_image_is_asked_for_and_its_objects_are_wanted():
    task, targets = KnownLabels(EXACT, CLASSES, seed=0), [target(0, 1, 1, 3, image_id=i) for i in range(30)]
    known, wanted = task(targets)
    assert set(known.label.tolist()) == {0, 1, 3}  # all that is there, and nothing else
    for label, one in zip(known.label.tolist(), wanted.targets, strict=True):
        assert one.labels.tolist() == [label] * (2 if label == 1 else 1)
    assert known.denoise.labels.tolist() == [[0, 1, 1, 3]] * 30 and known.isolated  # denoising is as ever
    assert [t.labels.tolist() for t in wanted.reconstructed] == [[0, 1, 1, 3]] * 30


def test_an_image_without_objects_is_asked_for_any_class_and_has_none():
    known, wanted = KnownLabels(None, CLASSES, seed=0)([target(image_id=i) for i in range(40)])
    assert set(known.label.tolist()) == set(range(CLASSES)) and known.denoise is None
    assert all(len(t.labels) == 0 for t in wanted.targets)


@pytest.mark.parametrize("task", [KnownObjects, KnownLabels])
def test_the_encoder_is_told_nothing_and_finds_all_objects(task):
    """Also of classes alone that are taught, with the detector's labels."""
    targets = [target(0, 1, 3, 2), target(0)]
    options = {"found": frozenset({0})} if task is KnownObjects else {}
    _, wanted = task(EXACT, CLASSES, seed=0, **options)(targets)
    assert [t.labels.tolist() for t in wanted.proposed] == [[0, 1, 3, 2], [0]]
    _, wanted = HeldOut(task(EXACT, 2, seed=0, **options), (1, 3), CLASSES)(targets)
    assert [t.labels.tolist() for t in wanted.proposed] == [[1, 3], []]


@pytest.mark.parametrize("task", [Detection, KnownObjects, KnownLabels])
def test_negatives_of_the_noise_are_wanted_to_see_nothing(task):
    noise = NoiseConfig(groups=1, contrastive=True)
    options = {"found": frozenset({0})} if task is KnownObjects else {}
    known, wanted = task(noise, CLASSES, seed=0, **options)([target(1, 3, 2), target(2)])
    assert [column.tolist() for column in wanted.negatives] == [[0, 0, 0, 1], [3, 4, 5, 3]]
    assert known.denoise.negative.sum() == len(wanted.known.query) == 4


def test_the_task_of_a_run_follows_its_settings():
    categories = Categories((1, 4, 9), ("cat", "dog", "cow"))
    config = tiny_config()
    assert type(build_task(config, categories)) is Detection
    object.__setattr__(config, "task", TaskConfig("known_objects", ("cow", "cat")))
    task = build_task(config, categories)
    assert type(task) is KnownObjects and task.found == {0, 2}
    for name, kind in (("detection", Detection), ("known_labels", KnownLabels)):
        object.__setattr__(config, "task", TaskConfig(name, ("cow", "cat")))
        task = build_task(config, categories)
        assert type(task.task) is kind and (task.taught, task.task.num_classes, task.num_classes) == ((0, 2), 2, 3)
    object.__setattr__(config, "task", TaskConfig("detection", ("cow", "horse")))
    with pytest.raises(UserError, match="task.classes: horse: no class of the data, which has cat, dog, cow"):
        build_task(config, categories)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["task.name=known_objects", "noise=null"], "noise must not be null with task.name: known_objects"),
        (["task.name=known_labels", "noise=null", "host.query=point"], "task.name must be detection with host.query: point"),
        (["task.name=known_things"], "task.name must be"),
    ],
)
def test_tasks_that_cannot_be_are_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_preset("dn-deform-tiny", overrides)
