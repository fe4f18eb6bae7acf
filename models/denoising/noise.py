"""Noise on ground-truth boxes and labels (Sec. 4.3): data for the decoder, drawn outside every model.

What the paper leaves open, our choice, and what the reference implementation (IDEA-Research/DN-DETR) does:

- A flipped label becomes one of the *other* classes, so that gamma is the real rate of flips (with one class nothing can
  flip). The reference draws from all classes: its real rate is gamma * (1 - 1 / C).
- `center_shift` is lambda1 and `box_scale` lambda2. The reference has one scale for both.
- Noised boxes are clamped to [0, 1] in cx, cy, w and h, so their corners may leave the image: as the reference does.
- Images with fewer objects than the largest of the batch have padded slots. `valid` tells them apart, the decoder hides
  them, the losses never see them. The reference lets real queries attend to them, so that there an image's result depends
  on its neighbours in the batch.
- Each image has its own generator, so that neither the batch nor the number of processes changes its noise.
- Where an image has more objects than `max_queries` allows for (memory grows with the square of the queries), so many of
  them are chosen at random, anew each epoch, and denoised in every group; the rest is matched as ever. The bound is one of
  images, not of batches, so that a crowded image takes nothing from its neighbours, and the denoising losses are still
  divided by all objects, so that an object weighs the same beside it. The reference has no bound.

Contrastive denoising (DINO, Sec. 3.3) is `contrastive: true`: in its group an object has a negative besides, a box with more
noise than a positive ever has, which is to be told apart as no object. What DINO's code does otherwise:

- It moves the four sides of a box, by up to lambda / 2 of the box's size (a negative's by up to lambda); here the centre and
  the size are noised as everywhere. Either way each of a negative's four numbers is off by 1 to 2 times the most that a
  positive's ever is, unless the image's border stops it.
- Its number of groups follows from the largest image of the batch (100 // objects); here it is fixed, as in the paper.
- It flips a label with half of the rate that it is given, to any class; here gamma is the rate, of other classes.
- Empty slots count as background in its class loss and are seen by real queries; here they are hidden, and no one's loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dndetr.models.structures import STRICT, Assignment, Target, demand


@dataclass(frozen=True)
class NoiseConfig:
    """The noise of Sec. 4.3 with the paper's defaults (Sec. 5.1).

    Parts are switched off one by one: label denoising by `labels: false` (box only, Table 5), box noise by scales of 0
    (label only), the attention mask by `isolated: false`.
    """

    groups: int = 5  # P, noised versions of every object
    center_shift: float = 0.4  # lambda1: |dx| < lambda1 * w / 2
    box_scale: float = 0.4  # lambda2: w becomes (1 - lambda2) * w .. (1 + lambda2) * w
    label_flip: float = 0.2  # gamma: share of labels replaced by another class
    labels: bool = True  # False: queries are told the unknown class, only the box is denoised
    isolated: bool = True  # False: without the attention mask of Eq. 7
    contrastive: bool = False  # each object also has a negative in its group: 1 to 2 times the noise, to be seen as no object
    max_queries: int = 2000  # the most denoising queries of an image: no more than max_queries / groups of its objects

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        demand(
            self,
            groups=(self.groups >= 1, "1 or more (no denoising is `noise: null`)"),
            center_shift=(0 <= self.center_shift <= 1, "from 0 to 1"),
            box_scale=(0 <= self.box_scale <= 1, "from 0 to 1"),
            label_flip=(0 <= self.label_flip <= 1, "from 0 to 1"),
            contrastive=(
                not self.contrastive or self.center_shift > 0 or self.box_scale > 0,
                "false where center_shift and box_scale are 0: negatives are told by their boxes",
            ),
            max_queries=(self.max_objects > 0, f"at least {self.least}: an object is in each of them"),
        )

    @property
    def versions(self) -> int:
        """How often a group holds an object: as a positive and, in contrastive denoising, as a negative."""
        return 2 if self.contrastive else 1

    @property
    def least(self) -> str:
        """The fewest queries that denoise an object, in words."""
        return f"groups ({self.groups})" if self.versions == 1 else f"2 * groups ({2 * self.groups})"

    @property
    def max_objects(self) -> int:
        """The most objects of an image that are denoised."""
        return self.max_queries // (max(1, self.groups) * self.versions)


@dataclass(frozen=True)
class NoisedTargets:
    """Noised objects of a batch, group after group: K = groups * slots, at least one slot a group.

    In contrastive denoising the second half of a group's slots are the negatives of the first.
    """

    labels: Tensor  # (B, K) int64; the unknown class C where labels are not denoised or the slot is padding
    boxes: Tensor  # (B, K, 4) cxcywh in [0, 1]; the centre box where the slot is padding
    valid: Tensor  # (B, K) bool, False = padding
    objects: Tensor  # (B, K) int64: which object of its image is in the slot; 0 where the slot is padding
    negative: Tensor  # (B, K) bool, True = too far from its object to be one: no object is to be reconstructed
    groups: int

    @property
    def slots(self) -> int:
        return self.valid.shape[1] // self.groups

    def assignment(self) -> Assignment:
        """Reconstruction: a slot answers for the object of its own image that it holds."""
        image, query = (self.valid & ~self.negative).nonzero(as_tuple=True)
        return Assignment(image, query, self.objects[image, query])

    def negatives(self) -> tuple[Tensor, Tensor]:
        """Image and query, each (A,), of the slots that answer for nothing."""
        image, query = self.negative.nonzero(as_tuple=True)
        return image, query

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NoisedTargets:
        tensors = {name: getattr(self, name) for name in ("labels", "boxes", "valid", "objects", "negative")}
        return replace(self, **{name: x.to(device, non_blocking=non_blocking) for name, x in tensors.items()})


def noise_targets(
    targets: Sequence[Target], config: NoiseConfig, num_classes: int, rng: Sequence[torch.Generator]
) -> NoisedTargets:
    """P noised versions of every object of every image (Sec. 4.3, 4.4), or of `max_objects` where it has more.

    `rng` holds one CPU generator for each image. Targets are not changed. With scales of 0 the boxes come back exact.
    """
    draws = [draw_noise(len(t.labels), config, num_classes, g) for t, g in zip(targets, rng, strict=True)]
    return apply_noise(targets, draws, config, num_classes)


class Draws(NamedTuple):
    """The random numbers behind one image's noise: P groups of V versions (the positive and the negative) of M objects."""

    flip: Tensor  # (P, V * M) in [0, 1): the label is replaced where this is below gamma
    offset: Tensor  # (P, V * M) int64: how many classes further the replacement lies
    box: Tensor  # (P, V * M, 4) in [0, 1): cx, cy, w, h, where 0.5 leaves a positive's box as it is
    chosen: Tensor | None = None  # (M,) int64, ascending: which objects of the image these are; None = all


def draw_noise(objects: int, config: NoiseConfig, num_classes: int, rng: torch.Generator) -> Draws:
    """Draw for one image; how much noise they make is decided later, in apply_noise."""
    chosen = None
    if objects > config.max_objects:
        chosen = torch.randperm(objects, generator=rng)[: config.max_objects].sort().values
        objects = config.max_objects
    shape = (config.groups, config.versions * objects)
    flip = torch.rand(shape, generator=rng)
    offset = torch.randint(1, num_classes, shape, generator=rng) if num_classes > 1 else torch.zeros(shape).long()
    return Draws(flip, offset, torch.rand((*shape, 4), generator=rng), chosen)


def apply_noise(targets: Sequence[Target], draws: Sequence[Draws], config: NoiseConfig, num_classes: int) -> NoisedTargets:
    """The noised queries that follow from the draws; tests feed recorded draws in here."""
    device = targets[0].boxes.device
    versions = config.versions
    slots = max(1, *(draw.flip.shape[1] // versions for draw in draws))
    shape = (len(targets), config.groups, versions, slots)
    labels = torch.full(shape, num_classes, device=device)  # B P V M
    boxes = torch.full((*shape, 4), 0.5, device=device)  # B P V M 4
    valid = torch.zeros(shape, dtype=torch.bool, device=device)  # B P V M
    objects = torch.zeros(shape, dtype=torch.long, device=device)  # B P V M
    for b, (target, draw) in enumerate(zip(targets, draws, strict=True)):
        flip, offset, box = (x.unflatten(1, (versions, -1)).to(device) for x in draw[:3])  # P V M
        m = flip.shape[2]
        chosen = torch.arange(m, device=device) if draw.chosen is None else draw.chosen.to(device)
        labels[b, ..., :m] = noised_labels(target.labels[chosen], flip, offset, config, num_classes)
        boxes[b, ..., :m, :] = noised_boxes(target.boxes[chosen], box, config)
        valid[b, ..., :m] = True
        objects[b, ..., :m] = chosen
    negative = torch.zeros_like(valid)
    negative[:, :, 1:] = valid[:, :, 1:]
    return NoisedTargets(
        labels.flatten(1), boxes.flatten(1, 3), valid.flatten(1), objects.flatten(1), negative.flatten(1), config.groups
    )


def noised_labels(labels: Tensor, flip: Tensor, offset: Tensor, config: NoiseConfig, num_classes: int) -> Tensor:
    """(M,) clean labels to (P, V, M): flipped to another class with probability gamma, those of negatives too."""
    if not config.labels:
        return torch.full_like(offset, num_classes)
    return torch.where(flip < config.label_flip, (labels + offset) % num_classes, labels)


def noised_boxes(boxes: Tensor, draw: Tensor, config: NoiseConfig) -> Tensor:
    """(M, 4) clean boxes to (P, V, M, 4): centres shifted by up to lambda1 / 2 of the size, sizes scaled by 1 +- lambda2.

    Of negatives by as much and once more, in the same directions.
    """
    reach = torch.cat((boxes[:, 2:] * config.center_shift / 2, boxes[:, 2:] * config.box_scale), dim=1)  # M 4
    amount = 2 * draw - 1  # P V M 4
    amount[:, 1:] += torch.ones_like(amount[:, 1:]).copysign(amount[:, 1:])
    return (boxes + amount * reach).clamp(0, 1)
