"""The losses: focal or cross-entropy for classes, l1 and GIoU for boxes, of every decoder layer, under whatever assignment.

Reconstruction (Sec. 4.3) is not a loss of its own: it is the same loss under an assignment that is known beforehand.
Class losses of the denoising part count the real queries only. Its negatives (contrastive denoising, DINO) are taught to see
nothing, as matching queries without an object are. Both parts are divided by the objects of the whole step, averaged over
processes, the denoising part by P times that; the reference divides its denoising part by the objects of the process alone,
so that there a process with few objects weighs each of them more.

Where classes exclude each other (`Output.softmax`) the class loss of the matching part is DETR's: cross-entropy over C + 1, a
mean in which objects weigh 1 and "no object" weighs `none`. DETR takes it over the queries of a process, we over those of the
whole step, so that parts and processes make no difference.

Proposals of the encoder (models/proposals.py) are matched and taught by themselves, as one more layer. They are told nothing,
so they are to find all objects of an image, those that a task tells the decoder too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dndetr.models.boxes import cxcywh_to_xyxy, generalized_iou
from dndetr.models.matcher import Matcher
from dndetr.models.structures import STRICT, Assignment, Output, Target, demand


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses (the same for matching and denoising, as in the reference) and the focal parameters."""

    cls: float = 1.0
    box: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    none: float = 0.1  # weight of "no object" beside the classes, where classes exclude each other (host detr)
    denoising: float = 1.0  # weight of the reconstruction losses beside the matching losses

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        names = ("cls", "box", "giou", "gamma", "none", "denoising")
        rules = {name: (getattr(self, name) >= 0, "0 or more") for name in names}
        demand(self, alpha=(0 <= self.alpha <= 1, "from 0 to 1"), **rules)


class Wanted(NamedTuple):
    """What a task wants of an output."""

    targets: Sequence[Target]  # the objects of each image that matching queries have to find
    known: Assignment | None = None  # which denoising query reconstructs which object
    groups: int = 0  # P, how often each of them is reconstructed
    told: Sequence[Target] | None = None  # the objects that are reconstructed, where they are not the ones to find
    taught: Tensor | None = None  # (C,) bool, the classes that the class loss counts, see `only_taught`; None = all
    negatives: tuple[Tensor, Tensor] | None = None  # image and query, each (A,): denoising queries that are to see nothing
    present: Sequence[Target] | None = None  # all objects of each image, where not all are to find; for proposals

    @property
    def reconstructed(self) -> Sequence[Target]:
        return self.targets if self.told is None else self.told

    @property
    def proposed(self) -> Sequence[Target]:
        return self.targets if self.present is None else self.present


class Losses(NamedTuple):
    """The weighted sum with its two shares, and every unweighted loss by name: cls_0, box_5, dn_giou_3, cls_enc ..."""

    total: Tensor
    matching: Tensor
    denoising: Tensor
    parts: dict[str, Tensor]


class Criterion:
    """`criterion(output, wanted, objects, told, images, present)`: how many objects of the whole step are to be found (None =
    those wanted here), how many are reconstructed (None = the same), how many images it has (None = those of the output) and
    how many objects these have in all (None = those to be found), averaged over processes; tensors of no dimension may stay
    where they are, so that no GPU is waited for. 0 objects count as 1.
    """

    def __init__(self, config: LossConfig, matcher: Matcher):
        self.config = config
        self.matcher = matcher

    def __call__(
        self,
        output: Output,
        wanted: Wanted,
        objects: float | Tensor | None = None,
        told: float | Tensor | None = None,
        images: float | Tensor | None = None,
        present: float | Tensor | None = None,
    ) -> Losses:
        denoising, matching = only_taught(output, wanted.taught).split()
        if objects is None:
            objects = sum(len(t.labels) for t in wanted.targets)
        found = objects * output.layout.matching_groups
        told = at_least_one(objects if told is None else told)
        matched = self.matcher(matching, wanted.targets)
        every = self.weight_of_queries(matching, matched[0], found, images) if output.softmax else None
        parts = self.part(matching, matched, wanted.targets, at_least_one(found), every)
        total = share = self.weigh(parts)
        named = name(parts, "")
        if matching.proposals is not None:
            parts = self.proposals(matching.proposals, wanted, at_least_one(objects if present is None else present))
            total = share = share + self.weigh(parts)
            named |= {f"{key}_enc": value.detach()[0] for key, value in parts.items()}
        reconstruction = torch.zeros_like(share)
        if wanted.known is not None:
            known = [wanted.known] * len(output.logits)
            negatives = wanted.negatives or tuple(column[:0] for column in wanted.known[:2])
            parts = self.part(denoising, known, wanted.reconstructed, told * wanted.groups, nothing=negatives)
            reconstruction = self.config.denoising * self.weigh(parts)
            total = share + reconstruction
            named |= name(parts, "dn_")
        return Losses(total, share.detach(), reconstruction.detach(), named)

    def proposals(self, output: Output, wanted: Wanted, objects: Tensor) -> dict[str, Tensor]:
        """cls, box and giou of the encoder's proposals, each (1,)."""
        targets = wanted.proposed
        if output.agnostic:
            targets = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
        else:
            output = only_taught(output, wanted.taught)
        return self.part(output, self.matcher(output, targets), targets, objects)

    def part(
        self,
        output: Output,
        assigned: list[Assignment],
        targets: Sequence[Target],
        objects: Tensor,
        every: float | Tensor | None = None,
        nothing: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """cls, box and giou of every layer (L,), divided by `objects`, cls by `every` where that is given.

        Taught to see nothing are the queries `nothing`, by image and query, or, where it is None, all that are not assigned.
        """
        where, object_ = flatten(assigned, targets)
        labels = torch.cat([t.labels for t in targets])[object_]  # A
        boxes = torch.cat([t.boxes for t in targets])[object_].float()  # A 4
        found, layers = output.boxes.float()[where], len(output.logits)
        classes = self.entropy if output.softmax else self.focal
        cls = classes(output.logits.float(), where, labels, nothing)
        l1 = (found - boxes).abs().sum(1)
        giou = 1 - generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(boxes))
        sums = {"box": by_layer(l1, where[0], layers), "giou": by_layer(giou, where[0], layers)}
        return {"cls": cls / (objects if every is None else every), **{key: value / objects for key, value in sums.items()}}

    def focal(self, logits: Tensor, where: Where, labels: Tensor, nothing: tuple[Tensor, Tensor] | None) -> Tensor:
        """The focal loss of each layer (L,): every class of a query is background, but for the one of its object."""
        asked, layers = logits[(*where, labels)], len(logits)  # A
        own = by_layer(self.foreground(asked) - self.background(asked), where[0], layers)
        if nothing is None:
            return own + self.background(logits).flatten(1).sum(1)
        others = by_layer(self.background(logits[where]).sum(1), where[0], layers)
        return own + others + self.background(logits[(slice(None), *nothing)]).flatten(1).sum(1)

    def entropy(self, logits: Tensor, where: Where, labels: Tensor, nothing: tuple[Tensor, Tensor] | None) -> Tensor:
        """The cross-entropy of each layer (L,): every query is of "no object", with its weight, or of its object."""
        surprise = -logits.log_softmax(-1)  # L B W C+1
        own = surprise[(*where, labels)]
        none = self.config.none * surprise[..., -1]
        if nothing is not None:
            return by_layer(own, where[0], len(logits)) + none[(slice(None), *nothing)].sum(1)
        return none.flatten(1).sum(1) + by_layer(own - none[where], where[0], len(logits))

    def weight_of_queries(
        self, output: Output, matched: Assignment, found: float | Tensor, images: float | Tensor | None
    ) -> float | Tensor:
        """The sum of the weights in `entropy`, of all matching queries of the step.

        For the step's other parts and processes only objects and images are known: there each object counts as found.
        """
        if images is None:
            images, found = output.logits.shape[1], len(matched.query)
        return found + self.config.none * (images * output.logits.shape[2] - found)

    def foreground(self, logits: Tensor) -> Tensor:
        """The focal loss where there is an object of the class: -alpha (1 - p)^gamma log p."""
        return self.config.alpha * (-logits).sigmoid() ** self.config.gamma * softplus(-logits)

    def background(self, logits: Tensor) -> Tensor:
        """The focal loss where there is none: -(1 - alpha) p^gamma log(1 - p)."""
        return (1 - self.config.alpha) * logits.sigmoid() ** self.config.gamma * softplus(logits)

    def weigh(self, parts: dict[str, Tensor]) -> Tensor:
        return sum(getattr(self.config, key) * value.sum() for key, value in parts.items())


def only_taught(output: Output, taught: Tensor | None) -> Output:
    """The output whose logits of classes that are not `taught` (C,) say "none" for certain: no loss, no gradient.

    A class without examples would else be background in every query of every image. The detector would learn to give it no
    score, be it there or not, and with labels.embeddings (Sec. 5.7.2) learn so from the vector of a class that it is to
    find later.
    """
    if taught is None:
        return output
    if output.softmax:
        taught = F.pad(taught, (0, 1), value=True)
    return replace(output, logits=output.logits.masked_fill(~taught, CERTAIN))


CERTAIN = -100.0  # p = e^-100: log(1 - p) and p itself are 0 in float32


def at_least_one(count: float | Tensor) -> Tensor:
    """A normaliser for so many objects; with none there is nothing to divide but the background."""
    count = torch.as_tensor(count)
    return torch.where(count > 0, count, 1.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), right to 1e-7 in absolute terms. On a CPU from a logarithm that is vectorised, unlike F.softplus's."""
    if x.device.type != "cpu":
        return F.softplus(x)
    size = x.abs()
    return (x + size) / 2 + (1 + (-size).exp()).log()


Where = tuple[Tensor, Tensor, Tensor]  # layer, image and query, each (A,)


def flatten(assigned: list[Assignment], targets: Sequence[Target]) -> tuple[Where, Tensor]:
    """Assignments of all layers as one: where (layer, image, query), and which of the batch's objects, all (A,)."""
    device = targets[0].labels.device
    starts = torch.tensor([0] + [len(t.labels) for t in targets], device=device).cumsum(0)
    layer = torch.cat([torch.full_like(a.image, i) for i, a in enumerate(assigned)])
    image, query, object_ = (torch.cat(column) for column in zip(*assigned, strict=True))
    return (layer, image, query), starts[image] + object_


def by_layer(values: Tensor, layer: Tensor, layers: int) -> Tensor:
    """(A,) summed by layer: (L,)."""
    return values.new_zeros(layers).index_add(0, layer, values)


def name(parts: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}_{i}": x for key, value in parts.items() for i, x in enumerate(value.detach().unbind())}
