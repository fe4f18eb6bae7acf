"""Classes known by given vectors, such as embeddings of their names by a language model (Sec. 5.7.2).

Nothing that is learned belongs to a class: contents of queries and rows of the class head are projections of its vector.
So a detector knows any class that has a vector, be it one that training never saw. A table or a head with embeddings takes
the place of the learned one, with another vector for each class, and needs nothing else to change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.models.linear import Linear
from dndetr.models.structures import STRICT


@dataclass(frozen=True)
class LabelsConfig:
    """Where the vectors of the classes come from."""

    embeddings: str | None = None  # a .safetensors file of class name -> vector; null: the table is learned, as in the paper

    __pydantic_config__ = STRICT


def holds_embeddings(key: str) -> bool:
    """Whether a tensor of a state dict is the vectors of the classes, which were given and not learned."""
    return key.rpartition(".")[2] == "embeddings"


class EmbeddedTable(nn.Module):
    """Contents of C classes and the unknown one, in the place of an `nn.Embedding`: the unknown row is learned."""

    def __init__(self, embeddings: Tensor, width: int):
        super().__init__()
        self.register_buffer("embeddings", unit(embeddings))
        self.projection = Linear(embeddings.shape[1], width)
        self.unknown = nn.Parameter(torch.randn(width))
        nn.init.normal_(self.projection.weight)  # rows then begin as those of an nn.Embedding do, with a variance of 1
        nn.init.zeros_(self.projection.bias)

    @property
    def weight(self) -> Tensor:
        """(C + 1, D), the unknown class last."""
        return torch.cat((self.projection(self.embeddings), self.unknown[None]))

    def forward(self, labels: Tensor) -> Tensor:
        """(...) int64 labels to (..., D)."""
        return F.embedding(labels, self.weight)


class EmbeddedClassifier(nn.Module):
    """Logits of C classes, in the place of an `nn.Linear`: the state's product with each class's projected vector.

    The bias is one for all classes, since a class that was never seen has none of its own. With `none` one logit more, the
    last, is that of "no object", which is no class and has no vector.
    """

    def __init__(self, width: int, embeddings: Tensor, none: bool = False):
        super().__init__()
        self.register_buffer("embeddings", unit(embeddings))
        self.projection = Linear(embeddings.shape[1], width, bias=False)
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.projection.weight, std=(3 * width) ** -0.5)  # rows as large as those of an nn.Linear
        self.none = Linear(width, 1) if none else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., C), or (..., C + 1)."""
        logits = F.linear(x, self.projection(self.embeddings)) + self.bias
        return logits if self.none is None else torch.cat((logits, self.none(x)), dim=-1)


def unit(embeddings: Tensor) -> Tensor:
    """(C, E) float vectors of length 1, whatever model they are from."""
    return F.normalize(embeddings.float(), dim=1)


def label_table(num_classes: int, width: int, embeddings: Tensor | None) -> nn.Embedding | EmbeddedTable:
    """Contents of the classes and the unknown one: learned, or from `embeddings` (C, E)."""
    return nn.Embedding(num_classes + 1, width) if embeddings is None else EmbeddedTable(embeddings, width)


def class_head(width: int, num_classes: int, embeddings: Tensor | None, none: bool = False) -> nn.Linear | EmbeddedClassifier:
    """States to logits of the classes, with `none` and of "no object": learned, or from `embeddings` (C, E)."""
    return Linear(width, num_classes + none) if embeddings is None else EmbeddedClassifier(width, embeddings, none)
