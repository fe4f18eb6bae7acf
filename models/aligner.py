"""SAM-DETR's decoder: queries are resampled from the image before they look at it, so that both speak the same language.

What a query looks for is read from the image features inside its box, at a few salient points, one a head (Sec. 3.2 to 3.4
of SAM-DETR). What the query itself holds only weighs the channels of that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from dndetr.models.boxes import cxcywh_to_xyxy
from dndetr.models.conditional import ConditionalLayer
from dndetr.models.deformable import Pyramid
from dndetr.models.denoising.queries import Queries
from dndetr.models.gaussian import gaussian
from dndetr.models.heads import MLP, DetectionHeads
from dndetr.models.linear import Linear
from dndetr.models.neck import bordered
from dndetr.models.position import encode_anchors
from dndetr.models.transformer import attend


class Level(NamedTuple):
    """One level of the encoded image, as tokens and as a map."""

    tokens: Tensor  # (B, S, D)
    position: Tensor  # (B, S, D)
    padding: Tensor | None  # (B, S) bool
    shape: tuple[int, int]  # h, w
    size: Tensor  # (B, 2) w, h of what is no padding, in tokens
    map: Tensor  # (B, D, h + 2, w + 2), see `bordered`


def levels_of(image: Pyramid, memory: Tensor) -> list[Level]:
    """The levels of an image whose encoded tokens are `memory` (B, S, D), coarse to fine."""
    split = [x.split(image.sizes, dim=1) for x in (memory, image.position)]
    levels = []
    for i, (tokens, position, padding, shape) in enumerate(zip(*split, image.hidden, image.shapes, strict=True)):
        at = None if padding is None else padding.unflatten(1, shape)
        levels.append(Level(tokens, position, padding, shape, image.extent(i), bordered(tokens.mT.unflatten(2, shape), at)))
    return levels[::-1]


class AlignedDecoder(nn.Module):
    """Decoder layers with 4D anchors, refined box by box, two layers a level from coarse to fine (SAM-DETR++)."""

    def __init__(self, *, layers: int, width: int, smca: bool, **build):
        """`width`, `smca` and `build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(AlignedLayer(width=width, smca=smca, **build) for _ in range(layers))
        self.width = width

    def forward(self, queries: Queries, levels: list[Level], heads: DetectionHeads) -> tuple[Tensor, Tensor]:
        """Hidden states (L, B, W, D) and the boxes of every layer (L, B, W, 4)."""
        x, blocked = queries.content, queries.blocked()
        reference = queries.position.float().sigmoid()
        states, boxes = [], []
        for i, layer in enumerate(self.layers):
            center = encode_anchors(reference[..., :2].detach(), self.width // 2).to(x.dtype)
            x = layer(x, center, reference, levels[min(i // 2, len(levels) - 1)], blocked)
            states.append(x)
            boxes.append(heads.boxes(i, x, reference))
            reference = boxes[-1].detach()
        return torch.stack(states), torch.stack(boxes)


class AlignedLayer(ConditionalLayer):
    """A conditional layer whose cross-attention asks with what the aligner finds; all its heads share their keys."""

    def __init__(self, *, width: int, heads: int, smca: bool, **build):
        """With `smca` attention falls off around the salient points, by scales that the aligner predicts."""
        super().__init__(first=False, width=width, heads=heads, activation=nn.ReLU, levels=1, **build)
        self.aligner = SemanticAligner(width, heads, smca)
        self.cross_position = nn.ModuleDict({name: MLP(width, width, width) for name in ("q", "k")})

    def cross_attend(self, x: Tensor, anchor_position: Tensor, reference: Tensor, level: Level) -> list[Tensor]:
        """What each query finds in the level, from its `reference` box (B, W, 4): one (B, W, D)."""
        content, at = self.cross_content, self.cross_position
        found, place, points, scales = self.aligner(x, reference, level)
        q = (content["q"](found) + at["q"](place)).flatten(2)  # B W heads*D
        k = (content["k"](level.tokens) + at["k"](level.position)).repeat(1, 1, self.heads)  # B S heads*D
        hidden = None if level.padding is None else level.padding[:, None]
        bias = None if scales is None else gaussian(points, scales, level.shape, offset=0.5)
        v = content["v"](level.tokens)
        return [content["out"](attend(q, k, v, self.heads, hidden, bias, self.left_out))]


class SemanticAligner(nn.Module):
    """Resamples a query from the image: features inside its box at one salient point a head."""

    def __init__(self, width: int, heads: int, smca: bool):
        super().__init__()
        self.heads, self.smca = heads, smca
        self.squeeze = nn.Conv2d(width, width // 4, kernel_size=1)
        numbers = 4 if smca else 2  # a head: the point and, with SMCA, the scales of its Gaussian
        self.points = MLP(width // 4 * BINS * BINS, width, 2 * width, 2 * width, numbers * heads)
        self.content_gate = Linear(width, heads * width)
        self.position_gate = Linear(width, heads * width)

    def forward(self, x: Tensor, reference: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """From queries x (B, W, D) and their boxes (B, W, 4) in the unpadded image, all (B, W, heads, .):

        features and encoded positions of the salient points (D each), the points in tokens (2) and their scales (2).
        """
        inside = self.look_into(reference, level).to(x.dtype)  # BW D 7 7
        numbers = self.points(self.squeeze(inside).relu().flatten(1)).float().unflatten(-1, (-1, self.heads, 2))
        salient = numbers[:, 0].tanh()  # BW heads 2, in halves of the box, from its centre
        scales = numbers[:, 1].unflatten(0, x.shape[:2]) if self.smca else None
        found = F.grid_sample(inside.float(), salient[:, :, None], align_corners=False)[..., 0].mT  # BW heads D
        found, salient = (each.unflatten(0, x.shape[:2]) for each in (found, salient))
        points = reference[..., None, :2] + salient * reference[..., None, 2:] / 2  # B W heads 2
        place = encode_anchors(points.detach(), x.shape[-1] // 2)  # as in the reference, features and bias move points
        gates = (gate(x).sigmoid().unflatten(-1, (self.heads, -1)) for gate in (self.content_gate, self.position_gate))
        found, place = (each.to(x.dtype) * gate for each, gate in zip((found, place), gates, strict=True))
        return found, place, points * level.size[:, None, None], scales

    def look_into(self, reference: Tensor, level: Level) -> Tensor:
        """The features inside of the boxes (B, W, 4), in 7 x 7 bins: (B * W, D, 7, 7).

        A box that ends within the image is read as the reference reads it where there is no padding. Of a box that reaches
        further, what lies outside is nothing here; in the reference it is padding, or nothing where the canvas ends as well.
        """
        reference = reference.nan_to_num().clamp(0, 1)  # roi_align takes memory by them; training itself says what diverges
        boxes = cxcywh_to_xyxy(reference) * level.size.repeat(1, 2)[:, None]
        image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(*boxes.shape[:2], 1)
        return roi_align(level.map.float(), torch.cat((image, boxes), dim=-1).flatten(0, 1), BINS, aligned=True)


BINS = 7
