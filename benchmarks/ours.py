"""Our side of the benchmarks: made-up batches, and the learner of a preset as `dndetr train` builds it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dndetr.models.hosts import build_detector
from dndetr.models.structures import Images, Target
from dndetr.resolve import load_preset
from dndetr.tasks import Detection
from dndetr.training.distributed import processes
from dndetr.training.learner import Learner

Batch = tuple[Images, list[Target]]


def made_up(batch: int, height: int, width: int, objects: int, classes: int) -> Batch:
    """Random pixels, and so many boxes an image with sides of a fifth to a half of its own."""
    torch.manual_seed(0)
    targets = []
    for image in range(batch):
        size = 0.2 + 0.3 * torch.rand(objects, 2)
        center = size / 2 + (1 - size) * torch.rand(objects, 2)
        labels = torch.randint(classes, (objects,))
        targets.append(Target(labels, torch.cat((center, size), dim=1), image, (height, width)))
    return Images(torch.randn(batch, 3, height, width)), targets


def training_step(preset: str, batch: Batch, classes: int, *overrides: str) -> Callable[[], object]:
    """One whole step of training: noise, forward, matching, losses, backward, clipping, AdamW and what the preset adds."""
    learns, task = learner(preset, classes, *overrides)
    return lambda: learns.step([batch], task)


def learner(preset: str, classes: int, *overrides: str) -> tuple[Learner, Detection]:
    """The learner and the task of a preset, on a CPU. A backbone has the form of a pretrained one, but random weights."""
    config = load_preset(preset, ["train.device=cpu", *overrides]).config
    with processes(config.train.device) as device:
        torch.manual_seed(config.train.seed)
        model = build_detector(config.host, config.backbone, classes)
        task = Detection(config.noise, classes, config.train.seed)
        return Learner(config, model, device, steps_per_epoch=1000), task
