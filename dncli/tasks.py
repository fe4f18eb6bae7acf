"""Tasks: what the detector is told about a batch, and what is wanted back. The training loop cannot tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.data.augment import image_generator
from dndetr.data.coco import Categories
from dndetr.models.criterion import Wanted
from dndetr.models.denoising.noise import NoiseConfig, noise_targets
from dndetr.models.denoising.queries import Known
from dndetr.models.structures import Target


class Task(Protocol):
    """Turns the targets of a batch into what is told and what is wanted."""

    def at(self, epoch: int) -> Task: ...

    def __call__(self, targets: Sequence[Target]) -> tuple[Known, Wanted]: ...


@dataclass(frozen=True)
class Detection:
    """Detection, with query denoising beside it (Sec. 4) unless `noise` is None.

    An image's noise follows from (seed, epoch, image id): no batch, worker or process changes it.
    """

    noise: NoiseConfig | None
    num_classes: int
    seed: int
    epoch: int = 1

    def at(self, epoch: int) -> Detection:
        return replace(self, epoch=epoch)

    def __call__(self, targets: Sequence[Target]) -> tuple[Known, Wanted]:
        targets = list(targets)
        if self.noise is None:
            return Known(every_group=True), Wanted(targets, None, 0)
        noised = noise_targets(targets, self.noise, self.num_classes, [self.rng(t, "noise") for t in targets])
        wanted = Wanted(targets, noised.assignment(), noised.groups, negatives=noised.negatives())
        return Known(noised, self.noise.isolated, every_group=True), wanted

    def rng(self, target: Target, purpose: str) -> torch.Generator:
        """An image's own generator for one purpose of this epoch."""
        return image_generator(self.seed, self.epoch, target.image_id, purpose)


@dataclass(frozen=True)
class KnownObjects(Detection):
    """Known object detection (Sec. 5.7.1): some objects are told, noised, without the attention mask; the rest is to be found.

    To be found are the objects of the classes `found`. Where that is None the detector is to serve for progressive inference
    (Sec. 5.7.2), whose first round knows nothing: in half of the images each object is told with a probability that the
    image draws for itself, from 0 to 1; the others are for ordinary detection, with the mask and all objects denoised.
    """

    found: frozenset[int] | None = None

    def __call__(self, targets: Sequence[Target]) -> tuple[Known, Wanted]:
        chosen = [self.chosen(target) for target in targets]
        ordinary = [self.found is None and not mask.any() for mask in chosen]
        rest = [take(target, ~mask) for target, mask in zip(targets, chosen, strict=True)]
        shown = [t if plain else take(t, mask) for t, mask, plain in zip(targets, chosen, ordinary, strict=True)]
        noised = noise_targets(shown, self.noise, self.num_classes, [self.rng(t, "noise") for t in targets])
        isolated = torch.tensor(ordinary, device=noised.valid.device)
        wanted = Wanted(rest, noised.assignment(), noised.groups, shown, negatives=noised.negatives(), present=list(targets))
        return Known(noised, isolated, every_group=True), wanted

    def chosen(self, target: Target) -> Tensor:
        """(M,) bool: the objects that are told."""
        if self.found is not None:
            return ~is_among(target.labels, self.found)
        rng = self.rng(target, "told")
        probability = 2 * torch.rand(1, generator=rng) - 1  # below 0, for none, in half of the images
        return (torch.rand(len(target.labels), generator=rng) < probability).to(target.labels.device)


@dataclass(frozen=True)
class KnownLabels(Detection):
    """Known label detection (Sec. 5.7.1): matching queries are told one class of the image, and find its objects.

    Which one of those present is drawn for each image and epoch; in an image without objects it is any, and nothing is
    there to be found. The paper asks for every class present, one after the other; a draw costs one pass, and over the
    epochs all are asked for. Denoising goes on beside it, with all objects.
    """

    def __call__(self, targets: Sequence[Target]) -> tuple[Known, Wanted]:
        told, plain = super().__call__(targets)
        labels = torch.stack([self.asked(target) for target in plain.targets])
        wanted = [take(t, t.labels == label) for t, label in zip(plain.targets, labels, strict=True)]
        return replace(told, label=labels), plain._replace(targets=wanted, told=plain.targets, present=plain.targets)

    def asked(self, target: Target) -> Tensor:
        """() int64: the class that an image is asked for."""
        choices = target.labels.unique()
        if not len(choices):
            choices = torch.arange(self.num_classes, device=target.labels.device)
        return choices[torch.randint(len(choices), (1,), generator=self.rng(target, "label")).item()]


@dataclass(frozen=True)
class HeldOut:
    """A task over some classes of a detector, where the others do not exist: neither as objects, nor as noise, nor in losses.

    That they have no objects is not enough. A flipped label that tells such a class would teach that its vector is always
    wrong, and the class loss that it is background everywhere, see `dndetr.models.criterion.only_taught`. So `task` is one of
    F classes, counted from 0, and what it says is translated into the C classes of the detector.
    """

    task: Task
    taught: tuple[int, ...]  # (F,), ascending: the classes of the detector that the task knows
    num_classes: int  # C

    def at(self, epoch: int) -> HeldOut:
        return replace(self, task=self.task.at(epoch))

    def __call__(self, targets: Sequence[Target]) -> tuple[Known, Wanted]:
        known, wanted = self.task([self.narrowed(target) for target in targets])
        found, told, present = (
            objects and [self.widened(target) for target in objects]
            for objects in (wanted.targets, wanted.told, wanted.present)
        )
        device = targets[0].labels.device
        taught = torch.isin(torch.arange(self.num_classes, device=device), torch.tensor(self.taught, device=device))
        wanted = wanted._replace(targets=found, told=told, present=present, taught=taught)
        return self.told(known), wanted

    def told(self, known: Known) -> Known:
        """The same with the labels of the detector."""
        noised = known.denoise
        if noised is not None:
            noised = replace(noised, labels=self.wide(noised.labels))
        return replace(known, denoise=noised, label=None if known.label is None else self.wide(known.label))

    def narrowed(self, target: Target) -> Target:
        """The objects of the taught classes, with the task's labels."""
        taught = torch.tensor(self.taught, device=target.labels.device)
        is_class = target.labels[:, None] == taught  # M F
        mask = is_class.any(1)
        return replace(target, labels=is_class[mask].int().argmax(1), boxes=target.boxes[mask])

    def widened(self, target: Target) -> Target:
        return replace(target, labels=self.wide(target.labels))

    def wide(self, labels: Tensor) -> Tensor:
        """The task's labels, of which F is the unknown class, as those of the detector, of which C is."""
        return torch.tensor([*self.taught, self.num_classes], device=labels.device)[labels]


TASKS = {"detection": Detection, "known_labels": KnownLabels}


def build_task(config: Config, categories: Categories) -> Task:
    """The task of a training. Raises UserError for names in task.classes that are no classes of the data.

    Classes that are not in task.classes are known objects' own, and held out of the other tasks.
    """
    found, name = labels_of(config, categories), config.task.name
    if name == "known_objects":
        return KnownObjects(config.noise, len(categories), config.train.seed, found=found)
    if found is None:
        return TASKS[name](config.noise, len(categories), config.train.seed)
    return HeldOut(TASKS[name](config.noise, len(found), config.train.seed), tuple(sorted(found)), len(categories))


def labels_of(config: Config, categories: Categories) -> frozenset[int] | None:
    """The classes 0 .. C-1 that task.classes names; None where it is empty, for all."""
    unknown = sorted(set(config.task.classes) - set(categories.names))
    if unknown:
        raise UserError(f"task.classes: {', '.join(unknown)}: no class of the data, which has {', '.join(categories.names)}")
    return frozenset(categories.names.index(name) for name in config.task.classes) or None


def only(target: Target, labels: frozenset[int] | None) -> Target:
    """The objects of some classes, None = of all."""
    return target if labels is None else take(target, is_among(target.labels, labels))


def take(target: Target, mask: Tensor) -> Target:
    """Those objects of an image where `mask` (M,) is true."""
    return replace(target, labels=target.labels[mask], boxes=target.boxes[mask])


def is_among(labels: Tensor, wanted: frozenset[int]) -> Tensor:
    """(M,) bool."""
    return torch.isin(labels, torch.tensor(sorted(wanted), device=labels.device))
