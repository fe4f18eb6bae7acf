"""Matching and losses of six decoder layers, against the algorithm of DETR's descendants and of DN-DETR's official code.

There every layer is done apart: costs of all queries with the objects of all images, GIoU by the full matrix, the focal loss
on a onehot of all classes, and the GIoU losses as the diagonal of a K x K matrix. What that code computes for the log alone
(cardinality, class error) is left out here. Both sides are checked to give the same loss. The rows with a line are those of a
step of DN-DETR, with 5 groups of denoising queries; the others are matching queries alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from compare import Contest, Functions, Row, main
from ours import made_up
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.denoising.noise import NoiseConfig, noise_targets
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.structures import Output, Target

LAYERS, BATCH, QUERIES, CLASSES = 6, 2, 300, 91


class Case(NamedTuple):
    """A detector's output, and what is wanted of it."""

    output: Output
    wanted: Wanted

    def objects(self) -> int:
        return sum(len(target.labels) for target in self.wanted.targets)


def ours(case: Case) -> Tensor:
    return Criterion(LossConfig(), Matcher(MatchConfig()))(*case, case.objects()).total


def reference(case: Case) -> Tensor:
    denoising, matching = case.output.split()
    targets, known, groups = case.wanted
    total = sum(matching_loss(*layer, targets) for layer in zip(matching.logits, matching.boxes, strict=True))
    if known is not None:
        labels = torch.cat([targets[i].labels[o, None] for i, _, o in zip(*known, strict=True)])
        wanted = torch.cat([targets[i].boxes[o, None] for i, _, o in zip(*known, strict=True)])
        for logits, boxes in zip(denoising.logits, denoising.boxes, strict=True):
            onehot = one_of(labels, CLASSES)
            cls = focal_loss(logits[known.image, known.query], onehot).sum()
            total = total + (cls + box_losses(boxes[known.image, known.query], wanted)) / (case.objects() * groups)
    return total


def matching_loss(logits: Tensor, boxes: Tensor, targets: list[Target]) -> Tensor:
    """The weighted losses of one layer, logits (B, N, C) and boxes (B, N, 4)."""
    pairs = match(logits, boxes, targets)
    image = torch.cat([torch.full_like(query, image) for image, (query, _) in enumerate(pairs)])
    where = image, torch.cat([query for query, _ in pairs])
    labels = torch.cat([target.labels[object_] for target, (_, object_) in zip(targets, pairs, strict=True)])
    wanted = torch.cat([target.boxes[object_] for target, (_, object_) in zip(targets, pairs, strict=True)])
    classes = torch.full(logits.shape[:2], CLASSES)
    classes[where] = labels
    cls = focal_loss(logits, one_of(classes, CLASSES)).sum()
    return (cls + box_losses(boxes[where], wanted)) / len(labels)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: list[Target]) -> list[tuple[Tensor, Tensor]]:
    """Queries and objects of each image."""
    labels, wanted = torch.cat([target.labels for target in targets]), torch.cat([target.boxes for target in targets])
    p, found = logits.flatten(0, 1).sigmoid(), boxes.flatten(0, 1)
    background = 0.75 * p**2 * -(1 - p + 1e-8).log()
    foreground = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    cls = foreground[:, labels] - background[:, labels]
    giou = generalized_box_iou(corners(found), corners(wanted))
    cost = (2 * cls + 5 * torch.cdist(found, wanted, p=1) - 2 * giou).view(*logits.shape[:2], -1)
    parts = cost.split([len(target.labels) for target in targets], -1)
    solved = [linear_sum_assignment(part[image]) for image, part in enumerate(parts)]
    return [(torch.as_tensor(query), torch.as_tensor(object_)) for query, object_ in solved]


def one_of(classes: Tensor, count: int) -> Tensor:
    """Onehot (..., count); the class `count` is none of them."""
    return torch.zeros(*classes.shape, count + 1).scatter_(-1, classes[..., None], 1)[..., :-1]


def focal_loss(logits: Tensor, onehot: Tensor) -> Tensor:
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
    p_of_truth = p * onehot + (1 - p) * (1 - onehot)
    return (0.25 * onehot + 0.75 * (1 - onehot)) * cross_entropy * (1 - p_of_truth) ** 2


def box_losses(found: Tensor, wanted: Tensor) -> Tensor:
    l1 = F.l1_loss(found, wanted, reduction="none").sum()
    giou = 1 - torch.diag(generalized_box_iou(corners(found), corners(wanted)))
    return 5 * l1 + 2 * giou.sum()


def corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


def side(name: str, loss: Callable[[Case], Tensor]) -> Functions:
    """The loss alone, and with the gradients of logits and boxes, for few and for many objects an image."""
    functions = {}
    for objects in (7, 100):
        for denoising in (True, False):
            case = made_up_case(objects, denoising)
            torch.testing.assert_close(loss(case), reference(case), rtol=1e-4, atol=0)
            key = f"{name} {objects} {denoising}"
            functions[f"{key} forward"] = partial(loss, case)
            functions[f"{key} both"] = partial(differentiate, loss, case)
    return functions


def made_up_case(objects: int, denoising: bool) -> Case:
    _, targets = made_up(BATCH, 1, 1, objects, CLASSES)
    noised = noise_targets(targets, NoiseConfig(), CLASSES, [torch.Generator() for _ in targets])
    layout = QueryLayout(noised.groups, noised.slots, QUERIES) if denoising else QueryLayout(0, 0, QUERIES)
    wanted = Wanted(targets, noised.assignment(), noised.groups) if denoising else Wanted(targets)
    logits = (torch.randn(LAYERS, BATCH, layout.width, CLASSES) - 4).requires_grad_()
    boxes = torch.randn(LAYERS, BATCH, layout.width, 4).sigmoid().requires_grad_()
    return Case(Output(logits, boxes, boxes[0], layout), wanted)


def differentiate(loss: Callable[[Case], Tensor], case: Case) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(case), (case.output.logits, case.output.boxes))


def rows(objects: int, line: float, great: float) -> list[Row]:
    names = [f"{objects} {denoising} {part}" for denoising in (True, False) for part in ("forward", "both")]
    texts = ["forward", "forward + backward", "forward, no denoising", "forward + backward, no denoising"]
    lines = [(line, great)] * 2 + [(None, None)] * 2
    return [
        Row(f"{objects} objects: {text}", f"ours {name}", f"reference {name}", *bars)
        for name, text, bars in zip(names, texts, lines, strict=True)
    ]


if __name__ == "__main__":
    sides = [partial(side, "ours", ours), partial(side, "reference", reference)]
    main(__doc__.partition("\n")[0], [Contest(sides, rows(7, 3, 5) + rows(100, 10, 20), rounds=31)])
