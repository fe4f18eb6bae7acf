"""Tasks: what the detector is told about a batch, and what is wanted back. The training loop cannot tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dncli.data.augment import image_generator
from models.criterion import Wanted
from models.denoising.noise import NoiseConfig, noise_targets
from models.denoising.queries import Known
from models.structures import Target


class Task(Protocol):
    """Turns the targets of a batch into what is told and what is wanted."""

    def at(self, epoch: int) -> Task: ...

    def __call__(self, targets: Sequence[Target]) -> tuple[Known | None, Wanted]: ...


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

    def __call__(self, targets: Sequence[Target]) -> tuple[Known | None, Wanted]:
        if self.noise is None:
            return None, Wanted(list(targets), None, 0)
        rng = [image_generator(self.seed, self.epoch, target.image_id, "noise") for target in targets]
        noised = noise_targets(targets, self.noise, self.num_classes, rng)
        return Known(noised, self.noise.isolated), Wanted(list(targets), noised.assignment(), noised.groups)
