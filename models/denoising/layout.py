"""How the decoder's queries lie: P denoising groups of M slots, then N matching queries; and who may see whom (Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QueryLayout:
    """Segments of queries. Without denoising `groups` and `slots` are 0."""

    groups: int  # P
    slots: int  # M
    queries: int  # N
    isolated: bool = True  # False: everyone sees everyone

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

        A denoising query is hidden from every segment but its own; matching queries are seen by all.
        """
        index = torch.arange(self.width, device=device)
        if not self.isolated or not self.denoising:
            return torch.zeros((self.width, self.width), dtype=torch.bool, device=device)
        segment = torch.where(index < self.denoising, index // self.slots, self.groups)  # W
        return (segment[:, None] != segment[None, :]) & (index < self.denoising)
