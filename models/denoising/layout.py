"""How the decoder's queries lie: P denoising groups of M slots, G matching groups of N; and who may see whom (Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QueryLayout:
    """Segments of queries. Without denoising `groups` and `slots` are 0."""

    groups: int  # P
    slots: int  # M
    queries: int  # N, or G * N: all matching queries
    isolated: bool = True  # False: denoising queries are hidden from no one, and nothing from them
    matching_groups: int = 1  # G > 1 in the training of Group DETR, each matched by itself

    @property
    def denoising(self) -> int:
        """K, the number of denoising queries."""
        return self.groups * self.slots

    @property
    def width(self) -> int:
        """W, the number of all queries."""
        return self.denoising + self.queries

    def split(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The denoising part and the matching part of x along `dim`."""
        denoising, matching = x.split((self.denoising, self.queries), dim=dim)
        return denoising, matching

    def blocked(self, device: torch.device | str | None = None) -> Tensor:
        """The attention mask of Eq. 7: (W, W) bool, True = query i may not attend to query j.

        Every segment, a denoising or a matching group, sees itself, and denoising queries also see the first matching group,
        the one that inference keeps. The paper has but that one: it is seen by all.
        """
        segment = self.segments(device)
        other = segment[:, None] != segment[None, :]  # W W
        matching = segment >= self.groups
        if not self.isolated:
            return other & matching[:, None] & matching[None, :]
        return other & ~(~matching[:, None] & (segment == self.groups)[None, :])

    def segments(self, device: torch.device | str | None = None) -> Tensor:
        """Which segment each query is of (W,): denoising groups 0 .. P-1, then matching groups."""
        index = torch.arange(self.width, device=device)
        matching = self.groups + (index - self.denoising).div(self.queries // self.matching_groups, rounding_mode="floor")
        return torch.where(index < self.denoising, index // max(1, self.slots), matching)
