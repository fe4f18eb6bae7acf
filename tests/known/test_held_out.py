"""Classes held out of training: no objects, no noise and no loss of theirs, and labels that are the detector's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dndetr.config import TaskConfig
from dndetr.data.coco import Categories
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.labels import LabelsConfig
from dndetr.models.structures import Target
from dndetr.tasks import Detection, HeldOut, build_task
from tests.training.tiny import tiny_config

CLASSES, TAUGHT = 5, (1, 4)
TARGETS = [Target(torch.tensor([4, 0, 1, 1, 3]), torch.rand(5, 4), 7), Target(torch.tensor([2]), torch.rand(1, 4), 8)]


def held_out(noise=None):
    return HeldOut(Detection(noise, len(TAUGHT), seed=0), TAUGHT, CLASSES)


def built(task="detection", embeddings="x.safetensors", classes=("b", "e")):
    config = replace(tiny_config(), task=TaskConfig(task, classes), labels=LabelsConfig(embeddings))
    return build_task(config, Categories(tuple(range(5)), tuple("abcde")))


def test_only_objects_of_taught_classes_are_wanted_with_the_labels_of_the_detector():
    known, wanted = held_out()(TARGETS)
    assert known.denoise is None
    assert [t.labels.tolist() for t in wanted.targets] == [[4, 1, 1], []]
    assert torch.equal(wanted.targets[0].boxes, TARGETS[0].boxes[[0, 2, 3]])
    assert wanted.taught.tolist() == [False, True, False, False, True]


def test_noise_flips_to_taught_classes_alone():
    known, wanted = held_out(NoiseConfig(groups=20, label_flip=1.0))(TARGETS)
    labels = known.denoise.labels[0][known.denoise.valid[0]].unflatten(0, (20, 3))
    assert labels.tolist() == [[1, 4, 4]] * 20
    assert wanted.known.image.eq(0).all()  # nothing of the second image
    assert known.denoise.labels[1].eq(CLASSES).all()  # empty slots hold the unknown class of the detector


def test_the_epoch_reaches_the_task():
    noise = NoiseConfig(groups=1)
    boxes = [held_out(noise).at(epoch)(TARGETS)[0].denoise.boxes for epoch in (1, 2)]
    assert not torch.equal(*boxes)


def test_known_labels_ask_for_taught_classes_alone():
    task = built("known_labels")
    asked = [task.at(epoch)(TARGETS)[0].label.tolist() for epoch in range(20)]
    assert {label for labels in asked for label in labels} == set(TAUGHT)


@pytest.mark.parametrize("given", [{"classes": ()}, {"task": "known_objects"}])
def test_classes_are_held_out_where_some_are_to_be_found_and_the_others_are_not_told(given):
    assert isinstance(built(), HeldOut) and isinstance(built(embeddings=None), HeldOut)
    assert not isinstance(built(**given), HeldOut)
