"""Decoder queries as label + position (Sec. 4.1, 4.5): matching queries, preceded by noised objects while training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.denoising.noise import NoisedTargets
from dndetr.models.labels import label_table
from dndetr.models.structures import Apart


@dataclass(frozen=True)
class Known:
    """What a decoder is told besides the image."""

    denoise: NoisedTargets | None = None  # objects to reconstruct
    isolated: bool | Tensor = True  # False: matching queries see them (Sec. 5.7.1, known objects); (B,) bool: by image
    label: Tensor | None = None  # (B,) int64: the class that matching queries look for (Sec. 5.7.1, known labels)
    every_group: bool = False  # all G groups of matching queries answer, as in training; else the first (Group DETR)


@dataclass(frozen=True)
class Queries:
    """What a decoder starts from."""

    content: Tensor  # (B, W, D)
    position: Tensor  # (B, W, 4 for anchor boxes | 2 for anchor points | D for embeddings ...), as the host stores it
    layout: QueryLayout
    padding: Tensor | None = None  # (B, W) bool, True = an empty slot; None = none
    isolated: Tensor | None = None  # (B,) bool, where it differs between images; False there = everyone sees everyone

    def blocked(self) -> Tensor | Apart | None:
        """Who may not attend to whom: the mask of Eq. 7, with empty slots hidden from every query; None = all see all.

        Of several matching groups only the first is part of it, unless the others may see denoising queries.
        """
        layout = self.layout
        if layout.matching_groups == 1 or not layout.isolated or self.isolated is not None:
            return self.mask(layout)
        size = layout.queries // layout.matching_groups
        return Apart(self.mask(replace(layout, queries=size, matching_groups=1)), layout.matching_groups - 1, size)

    def mask(self, layout: QueryLayout) -> Tensor | None:
        """(B, V, V) bool or None, True = may not attend, of the first V queries, which lie as `layout` says.

        No row is wholly blocked: everyone may see matching queries.
        """
        if not layout.denoising and layout.matching_groups == 1:
            return None
        blocked = layout.blocked(self.content.device)[None]
        if self.isolated is not None:
            seen = replace(layout, isolated=False).blocked(self.content.device)
            blocked = torch.where(self.isolated[:, None, None], blocked, seen)
        return blocked if self.padding is None else blocked | self.padding[:, None, : layout.width]


class LabelEmbedding(nn.Module):
    """Class embeddings, one for the unknown class, and the indicator as last channel (Sec. 4.5), which DINO does without.

    With `embeddings` (C, E) classes are known by these vectors (Sec. 5.7.2), see models/labels.py.
    """

    def __init__(self, num_classes: int, width: int, embeddings: Tensor | None = None, *, indicator: bool = True):
        super().__init__()
        self.table = label_table(num_classes, width - indicator, embeddings)
        self.unknown = num_classes
        self.indicator = indicator

    def forward(self, labels: Tensor, indicator: Tensor | float) -> Tensor:
        """(...) labels, `unknown` allowed, to (..., D). The indicator is 1 for told objects and 0 for matching queries."""
        return self.beside(self.table(labels), indicator)

    def contents(self, queries: int, known: Known | None) -> Tensor:
        """Contents of matching queries that hold the unknown class (N, D), or the class that they are told (B, N, D)."""
        return self.looking_for(self.unknowns(queries), known)

    def looking_for(self, own: Tensor, known: Known | None) -> Tensor:
        """Contents of matching queries: their `own` (N, D), or (B, N, D) where each image's class is told (Sec. 5.7.1)."""
        if known is None or known.label is None:
            return own
        return self(known.label, 1.0)[:, None].expand(-1, len(own), -1) + 0 * own  # what was learned stays in the graph

    def unknowns(self, queries: int) -> Tensor:
        """Contents of matching queries (N, D): the unknown class, indicator 0."""
        return self.beside(self.table.weight[self.unknown].expand(queries, -1), 0.0)

    def beside(self, embedding: Tensor, indicator: Tensor | float) -> Tensor:
        return with_indicator(embedding, indicator) if self.indicator else embedding


class Patterns(nn.Module):
    """Several learned contents for every anchor, as in Anchor DETR (3 in Tables 2 and 4); 0 patterns change nothing.

    Of G `groups` of anchors (Group DETR) each stays together.
    """

    def __init__(self, patterns: int, width: int, groups: int = 1):
        super().__init__()
        self.table = nn.Parameter(torch.randn(patterns, width)) if patterns else None
        self.groups = groups

    def forward(self, content: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """(..., N, D) and (N, 4) to (..., patterns * N, D) and (patterns * N, 4), all anchors of the first pattern first.

        As in the reference a pattern is added to the whole content, the indicator's channel included.
        """
        if self.table is None:
            return content, anchors
        content = self.table[:, None] + content.unflatten(-2, (self.groups, 1, -1))  # ... G patterns N D
        anchors = anchors.unflatten(0, (self.groups, 1, -1)).expand(-1, len(self.table), -1, -1)
        return content.flatten(-4, -2), anchors.flatten(0, 2)


def with_indicator(embedding: Tensor, indicator: Tensor | float) -> Tensor:
    """(..., D-1) to (..., D): append the 0/1 indicator of Sec. 4.5."""
    column = torch.as_tensor(indicator, dtype=embedding.dtype, device=embedding.device).expand(embedding.shape[:-1])
    return torch.cat((embedding, column[..., None]), dim=-1)


def assemble(
    content: Tensor,
    position: Tensor,
    known: Known | None,
    *,
    batch: int,
    label: LabelEmbedding,
    locate: Callable[[Tensor], Tensor],
    groups: int = 1,
) -> Queries:
    """Queries of a batch: the noised objects that are known, then the matching queries.

    `content` (N, D) or (B, N, D) and `position` (N, E) or (B, N, E) are the host's matching queries; `locate` turns (B, K, 4)
    boxes into the host's positions. With G `groups` (Group DETR) they are G * N, group after group, of which the first alone
    answers where not `known.every_group`. An empty slot has content 0 and the position of the centre box, as in the reference,
    but is hidden. What tells objects is always part of the graph, so that every process of a parallel training has a gradient
    for it.
    """
    if groups > 1 and (known is None or not known.every_group):
        count = position.shape[-2] // groups
        content, position, groups = content[..., :count, :], position[..., :count, :], 1
    content, position = (x.expand(batch, *x.shape[-2:]) for x in (content, position))
    noised = known.denoise if known is not None else None
    if noised is None:
        layout = QueryLayout(groups=0, slots=0, queries=content.shape[1], matching_groups=groups)
        untold = [label.table.weight, *(locate.parameters() if isinstance(locate, nn.Module) else [])]
        return Queries(content + 0 * sum(weight.sum() for weight in untold), position, layout)
    told = label(noised.labels, 1.0) * noised.valid[..., None]  # B K D
    by_image = isinstance(known.isolated, Tensor)
    return Queries(
        content=torch.cat((told, content), dim=1),
        position=torch.cat((locate(noised.boxes).to(position.dtype), position), dim=1),
        layout=QueryLayout(noised.groups, noised.slots, content.shape[1], by_image or known.isolated, groups),
        padding=torch.cat((~noised.valid, noised.valid.new_zeros(content.shape[:2])), dim=1),
        isolated=known.isolated if by_image else None,
    )


def plain(content: Tensor, position: Tensor, known: Known | None, *, batch: int) -> Queries:
    """Matching queries alone, for a host whose queries are no boxes."""
    if known is not None and (known.denoise is not None or known.label is not None):
        raise ValueError("queries of this host are no boxes with labels: set noise: null, and nothing can be told")
    content, position = (x.expand(batch, *x.shape[-2:]) for x in (content, position))
    return Queries(content, position, QueryLayout(groups=0, slots=0, queries=content.shape[1]))
