"""The few values that pass between data, hosts, matcher and losses.

Letters, used at line ends everywhere: B images, H W pixels, C classes, N matching queries, P denoising groups, M slots of a
group, K = P * M denoising queries, W = K + N decoder queries, L decoder layers, S image tokens, D width of the model,
A assigned pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dndetr.models.denoising.layout import QueryLayout


@dataclass(frozen=True)
class Images:
    """A batch of images of different sizes, each in the upper left corner of a common canvas."""

    pixels: Tensor  # (B, 3, H, W), normalised, 0 under the padding
    padding: Tensor | None = None  # (B, H, W) bool, True = no image here; None = every image fills the canvas

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Images:
        padding = None if self.padding is None else self.padding.to(device, non_blocking=non_blocking)
        return Images(self.pixels.to(device, non_blocking=non_blocking), padding)


class Feature(NamedTuple):
    """One feature map with its own padding, None where nothing is padded."""

    x: Tensor  # (B, C, h, w)
    padding: Tensor | None  # (B, h, w) bool


@dataclass(frozen=True)
class Target:
    """The objects of one image, in the coordinates of the image that the model sees."""

    labels: Tensor  # (M,) int64, 0 .. C-1
    boxes: Tensor  # (M, 4) cxcywh in [0, 1] of the unpadded image
    image_id: int = 0
    size: tuple[int, int] = (0, 0)  # height and width of the image as it lies on disk, after its EXIF rotation

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        labels = self.labels.to(device, non_blocking=non_blocking)
        return Target(labels, self.boxes.to(device, non_blocking=non_blocking), self.image_id, self.size)


class Assignment(NamedTuple):
    """Which query of which image answers for which object, however that was decided."""

    image: Tensor  # (A,) int64
    query: Tensor  # (A,) int64, index into that part of the queries which was assigned
    object: Tensor  # (A,) int64, index into the image's own targets


class Apart(NamedTuple):
    """Who sees whom among queries of which the last are groups that see but themselves (Group DETR).

    As a mask of all queries it would say little but "no".
    """

    first: Tensor | None  # (B, F, F) bool, among the F first queries, True = may not attend; None = all see all
    groups: int  # how many groups of equal size follow
    size: int  # queries of each


@dataclass(frozen=True)
class Output:
    """What every host returns."""

    logits: Tensor  # (L, B, W, C), before the sigmoid; (L, B, W, C + 1), before the softmax
    boxes: Tensor  # (L, B, W, 4) cxcywh in [0, 1] of the unpadded image
    anchors: Tensor | None  # (B, W, 2 or 4) in [0, 1], where the decoder started from; None = from no place (embeddings)
    layout: QueryLayout
    softmax: bool = False  # the classes exclude each other, and the last logit is that of "no object"
    proposals: Output | None = None  # of the encoder, which chose the anchors: of one layer, with a layout of their own
    agnostic: bool = False  # every object is one of the first class, as for some proposals

    @property
    def classes(self) -> int:
        """C."""
        return self.logits.shape[-1] - self.softmax

    def scores(self) -> Tensor:
        """The probability of each class in the last layer (B, W, C)."""
        logits = self.logits[-1]
        return logits.softmax(-1)[..., : self.classes] if self.softmax else logits.sigmoid()

    def split(self) -> tuple[Output, Output]:
        """The denoising part, of W = K queries, and the matching part, of W = N, to which the proposals belong."""
        decoder = replace(self, proposals=None)
        denoising, matching = (decoder.map(lambda x, i=i: self.layout.split(x, dim=-2)[i]) for i in range(2))
        return denoising, replace(matching, proposals=self.proposals)

    def map(self, change: Callable[[Tensor], Tensor]) -> Output:
        """The same with every tensor changed."""
        anchors = None if self.anchors is None else change(self.anchors)
        proposals = None if self.proposals is None else self.proposals.map(change)
        return replace(self, logits=change(self.logits), boxes=change(self.boxes), anchors=anchors, proposals=proposals)


class FieldErrors(ValueError):
    """What is wrong with a configuration, by field: every mistake at once."""

    def __init__(self, problems: dict[str, str]):
        super().__init__("; ".join(f"{name} {problem}" for name, problem in problems.items()))
        self.problems = problems


def demand(config: object, **rules: tuple[bool, str]) -> None:
    """Raise FieldErrors for the fields of `config` whose rule `(holds, what it must be)` does not hold."""
    problems = {name: f"must be {what}, got {getattr(config, name)!r}" for name, (holds, what) in rules.items() if not holds}
    if problems:
        raise FieldErrors(problems)


def positive(config: object, *names: str) -> dict[str, tuple[bool, str]]:
    """Rules for `demand`: these fields are above 0."""
    return {name: (getattr(config, name) > 0, "above 0") for name in names}


def groups_apart(config: Any) -> dict[str, tuple[bool, str]]:
    """Rules for `demand`: groups of matching queries (Group DETR) that only their anchors tell apart do not begin alike.

    On a grid they would: each would learn what the others do, and be one group.
    """
    alike = config.anchors == "grid"
    holds = config.groups > 0 and not (alike and config.groups > 1)
    return {"groups": (holds, "1 with anchors: grid, where all are the same, else above 0")}


def transformer_sizes(config: Any) -> dict[str, tuple[bool, str]]:
    """Rules for `demand`: the sizes that every host's encoder and decoder share."""
    hidden, heads = config.hidden, config.heads
    even = hidden > 0 and hidden % 4 == 0 and heads > 0 and hidden % heads == 0  # sine encodings need the 4
    return {
        "hidden": (even or heads <= 0, f"a multiple of 4 and of heads ({heads})"),
        "encoder_layers": (config.encoder_layers >= 0, "0 or more"),
        "dropout": (0 <= config.dropout < 1, "from 0 to below 1"),
        **positive(config, "queries", "heads", "ffn", "decoder_layers"),
    }


# Plain dataclasses are checked by pydantic in dncli; this makes it refuse unknown keys without models importing it.
STRICT = {"extra": "forbid"}
