"""Classes held out of training (zero-shot, Sec. 5.7.2): the detector has their vectors, and learns nothing of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.criterion import Wanted
from models.denoising.queries import Known
from models.structures import Target

if TYPE_CHECKING:
    from dncli.tasks import Task


@dataclass(frozen=True)
class HeldOut:
    """A task over some classes of a detector, where the others do not exist: neither as objects, nor as noise, nor in losses.

    That they have no objects is not enough. A flipped label that tells such a class would teach that its vector is always
    wrong, and the class loss that it is background everywhere, see `models.criterion.only_taught`. So `task` is one of
    F classes, counted from 0, and what it says is translated into the C classes of the detector.
    """

    task: Task
    taught: tuple[int, ...]  # (F,), ascending: the classes of the detector that the task knows
    num_classes: int  # C

    def at(self, epoch: int) -> HeldOut:
        return replace(self, task=self.task.at(epoch))

    def __call__(self, targets: Sequence[Target]) -> tuple[Known | None, Wanted]:
        known, wanted = self.task([self.narrowed(target) for target in targets])
        told = None if wanted.told is None else [self.widened(target) for target in wanted.told]
        device = targets[0].labels.device
        taught = torch.isin(torch.arange(self.num_classes, device=device), torch.tensor(self.taught, device=device))
        wanted = wanted._replace(targets=[self.widened(target) for target in wanted.targets], told=told, taught=taught)
        return None if known is None else self.told(known), wanted

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
