"""Bipartite matching of queries with objects: the Hungarian assignment whose instability the paper measures (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dndetr.models.boxes import cxcywh_to_xyxy, generalized_iou
from dndetr.models.structures import STRICT, Assignment, Output, Target, demand


@dataclass(frozen=True)
class MatchConfig:
    """Weights of the matching cost, as in DAB-DETR: class, l1 of cxcywh, GIoU."""

    cls: float = 2.0  # of the focal cost; of the probability where classes exclude each other (host detr)
    box: float = 5.0
    giou: float = 2.0

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        demand(self, **{name: (getattr(self, name) >= 0, "0 or more") for name in ("cls", "box", "giou")})


class Matcher:
    """Assigns to every object of an image the query that costs least in sum, for every layer apart.

    Of G groups of matching queries (Group DETR) each finds all objects by itself.
    """

    def __init__(self, config: MatchConfig):
        self.config = config

    @torch.no_grad()
    def __call__(self, output: Output, targets: Sequence[Target]) -> list[Assignment]:
        """The matching part of an output to one Assignment a layer, ordered by image and query.

        Raises FloatingPointError where a prediction is not finite.
        """
        counts = [len(t.labels) for t in targets]
        if not sum(counts):
            none = torch.zeros(0, dtype=torch.long, device=output.boxes.device)
            return [Assignment(none, none, none)] * len(output.boxes)
        cost = self.cost(output, targets).cpu().numpy()  # L B M N, the one copy to the host
        check_finite(cost, targets)
        pairs = np.stack([solve(layer, counts, output.layout.matching_groups) for layer in cost])  # L 3 A
        return [Assignment(*layer) for layer in torch.as_tensor(pairs).to(output.boxes.device)]

    def cost(self, output: Output, targets: Sequence[Target]) -> Tensor:
        """(L, B, M, N), each image against its own objects only; what lies beyond an image's count means nothing."""
        logits, boxes = output.logits.float(), output.boxes.float()
        if output.softmax:
            logits = logits.softmax(-1)
        labels = pad_sequence([t.labels for t in targets], batch_first=True)  # B M
        wanted = pad_sequence([t.boxes for t in targets], batch_first=True)  # B M 4
        asked = logits.transpose(2, 3).gather(2, labels[..., None].expand(*logits.shape[:2], -1, logits.shape[2]))
        cls = -asked if output.softmax else focal_cost(asked)
        box = torch.cdist(wanted.expand(len(boxes), -1, -1, -1), boxes, p=1)
        found = cxcywh_to_xyxy(boxes).movedim(-1, 0).contiguous().movedim(0, -1)  # the many queries innermost: faster
        giou = generalized_iou(found[:, :, None], cxcywh_to_xyxy(wanted)[:, :, None])
        return (self.config.cls * cls).add_(box, alpha=self.config.box).sub_(giou, alpha=self.config.giou)


def check_finite(cost: np.ndarray, targets: Sequence[Target]) -> None:
    """Raise FloatingPointError for the first layer and image (L, B, M, N) whose predictions are not finite."""
    if not np.isfinite(cost).all():
        layer, image = np.argwhere(~np.isfinite(cost))[0, :2]
        raise FloatingPointError(f"a prediction of decoder layer {layer} for image {targets[image].image_id} is not finite")


def solve(cost: np.ndarray, counts: list[int], groups: int) -> np.ndarray:
    """One layer's cost (B, M, G * N) to image, query and object of every pair, by image and query: (3, A)."""
    pairs = []
    queries = cost.shape[2] // groups
    for image, count in enumerate(counts):
        for start in range(0, cost.shape[2], queries):
            object_, query = linear_sum_assignment(cost[image, :count, start : start + queries])
            order = query.argsort()
            pairs.append((np.full(len(query), image), start + query[order], object_[order]))
    return np.concatenate(pairs, axis=1)


def focal_cost(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """What the focal loss of an object costs more than that of the background, as in Deformable DETR."""
    p = logits.sigmoid()
    return alpha * (1 - p) ** gamma * -(p + 1e-8).log() - (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
