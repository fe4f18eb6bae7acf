"""What turns a decoder's hidden state into classes and boxes."""

import math

import torch
from torch import Tensor, nn

from dndetr.models.boxes import inverse_sigmoid
from dndetr.models.labels import class_head
from dndetr.models.linear import Linear


class MLP(nn.Module):
    """Linear layers with ReLU between them: `sizes` are the widths from input to output."""

    def __init__(self, *sizes: int):
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class DetectionHeads(nn.Module):
    """A class head and a box head for every decoder layer, or one pair for all of them.

    With `embeddings` (C, E) classes are known by these vectors, see models/labels.py.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        layers: int,
        *,
        shared: bool,
        eps: float = 1e-3,
        embeddings: Tensor | None = None,
        softmax: bool = False,
    ):
        """`softmax`: classes exclude each other, one logit more is that of "no object", and no score is low to begin with."""
        super().__init__()
        copies = 1 if shared else layers
        self.cls = nn.ModuleList(class_head(width, num_classes, embeddings, softmax) for _ in range(copies))
        self.box = nn.ModuleList(MLP(width, width, width, 4) for _ in range(copies))
        self.shared = shared
        self.eps = eps
        for cls, box in zip(self.cls, self.box, strict=True):
            if softmax:  # as DETR begins, whose queries have no place of their own to start from
                continue
            nn.init.constant_(cls.bias, -math.log(99))  # every class starts at a probability of 0.01, for the focal loss
            nn.init.zeros_(box.layers[-1].weight)
            nn.init.zeros_(box.layers[-1].bias)

    def logits(self, layer: int, x: Tensor) -> Tensor:
        """(..., D) to (..., C)."""
        return self.cls[0 if self.shared else layer](x)

    def boxes(self, layer: int, x: Tensor, reference: Tensor | None) -> Tensor:
        """(..., D) and reference points or boxes (..., 2 or 4) in [0, 1], or none, to boxes (..., 4) in [0, 1]."""
        delta = self.box[0 if self.shared else layer](x).float()
        if reference is None:
            return delta.sigmoid()
        offset = inverse_sigmoid(reference.float(), self.eps)
        if offset.shape[-1] == 2:  # a point says nothing of the size
            offset = nn.functional.pad(offset, (0, 2))
        return (delta + offset).sigmoid()


def initial_anchors(queries: int, kind: str, groups: int = 1) -> Tensor:
    """(G * N, 4) anchor logits: `random` is N(0, 1) as in DAB-DETR, `grid` covers the image evenly with boxes of 0.22."""
    if kind == "random":
        return torch.randn(groups * queries, 4)
    grid = inverse_sigmoid(torch.cat((grid_points(queries), torch.full((queries, 2), 0.22)), dim=1))
    return grid.repeat(groups, 1)


def grid_points(queries: int) -> Tensor:
    """(N, 2) points in [0, 1], row after row, each row with nearly as many."""
    rows = round(math.sqrt(queries))
    points = []
    for row, share in enumerate(torch.arange(queries).tensor_split(rows)):
        across = (torch.arange(len(share)) + 0.5) / len(share)
        points.append(torch.stack((across, torch.full_like(across, (row + 0.5) / rows)), dim=1))
    return torch.cat(points)
