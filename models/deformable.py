"""Multi-scale deformable attention (Deformable DETR), its encoder and its decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.models import native
from dndetr.models.denoising.queries import Queries
from dndetr.models.heads import MLP, DetectionHeads
from dndetr.models.linear import Linear
from dndetr.models.position import encode_anchors, waves
from dndetr.models.transformer import Attention, FeedForward

Shapes = Sequence[tuple[int, int]]


def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor | Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Weighted bilinear samples of every level, heads side by side: (B, Q, H * D).

    value (B, S, H, D), spatial_shapes (L, 2) as h, w, sampling_locations (B, Q, H, L, P, 2) as x, y in [0, 1] of the
    padded image, attention_weights (B, Q, H, L, P). Outside of the image there is 0; pixel centres lie at half numbers.
    Shapes may be plain numbers: they are sizes, which no device needs to be asked for and torch.export wants to know.
    The result has the dtype of `value`; halves are summed in float32, from locations and weights that may be float32.

    The work is done by the operator of csrc/ where there is one for the device (see models/native.py).
    """
    if not by_operator(value.device.type):
        return ms_deform_attn_torch(value, spatial_shapes, sampling_locations, attention_weights)
    if not isinstance(spatial_shapes, Tensor):
        spatial_shapes = torch.tensor(spatial_shapes, device="cpu")
    return torch.ops.dndetr.ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights)


def by_operator(device: str) -> bool:
    """Whether the operator does the work on a device type.

    Asked for determinism, PyTorch's version says what it cannot promise on CUDA; the operator's atomics cannot either.
    """
    undetermined = device == "cuda" and torch.are_deterministic_algorithms_enabled()
    return not undetermined and native.ready(device)


def ms_deform_attn_torch(
    value: Tensor, spatial_shapes: Tensor | Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The same in PyTorch, by grid_sample: for every device, and what the operator is held to."""
    batch, _, heads, width = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    computed = torch.promote_types(value.dtype, torch.float32)
    grids = (2 * sampling_locations.to(computed) - 1).transpose(1, 2).flatten(0, 1)  # BH Q L P 2
    samples = []
    for i, level in enumerate(value.to(computed).split([h * w for h, w in shapes], dim=1)):
        image = level.permute(0, 2, 3, 1).reshape(batch * heads, width, *shapes[i])
        samples.append(F.grid_sample(image, grids[:, :, i], padding_mode="zeros", align_corners=False))
    found = torch.cat(samples, dim=-1)  # BH D Q LP
    weights = attention_weights.to(computed).transpose(1, 2).reshape(batch * heads, 1, queries, len(shapes) * points)
    return (found * weights).sum(-1).view(batch, heads * width, queries).transpose(1, 2).to(value.dtype)


@dataclass(frozen=True)
class Pyramid:
    """The image tokens of all levels, fine to coarse."""

    tokens: Tensor  # (B, S, D)
    position: Tensor  # (B, S, D)
    padding: Tensor | None  # (B, S) bool
    shapes: Shapes  # h, w of each level
    valid: Tensor  # (B, L, 2) the unpadded share of each level's w and h

    @property
    def sizes(self) -> list[int]:
        """Tokens of each level."""
        return [h * w for h, w in self.shapes]

    @property
    def hidden(self) -> list[Tensor | None]:
        """The padding of each level (B, h * w), None where nothing is padded."""
        return [None] * len(self.shapes) if self.padding is None else list(self.padding.split(self.sizes, dim=1))

    def extent(self, level: int) -> Tensor:
        """Width and height of the images in whole pixels of a level (B, 2), the same on every canvas."""
        h, w = self.shapes[level]
        return (self.valid[:, level] * self.valid.new_tensor((w, h))).round()


class DeformableAttention(nn.Module):
    """Each query samples P points around its reference in each of L levels and head."""

    def __init__(self, width: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.value = Linear(width, width)
        self.offsets = Linear(width, heads * levels * points * 2)
        self.weights = Linear(width, heads * levels * points)
        self.out = Linear(width, width)

    def forward(self, query: Tensor, reference: Tensor, memory: Tensor, padding: Tensor | None, shapes: Shapes) -> Tensor:
        """query (B, W, D), reference (B, W, L, 2 or 4) in the padded image, memory (B, S, D) to (B, W, D).

        Around a point the offsets are in pixels of the level, around a box in halves of its size.
        """
        value = self.value(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        value = value.unflatten(-1, (self.heads, -1))
        split = (self.heads, self.levels, self.points)
        offsets = self.offsets(query).float().unflatten(-1, (self.heads, -1))  # B W H LP2
        weights = self.weights(query).float().unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, split[1:])
        reference = reference.float()
        center = reference[..., :2]  # B W L 2
        if reference.shape[-1] == 2:
            unit = (1 / offsets.new_tensor([(w, h) for h, w in shapes])).expand_as(center)
        else:
            unit = reference[..., 2:] / (2 * self.points)
        # Points beside each other, not loops over the last two numbers: those would take longer than the sampling.
        locations = torch.addcmul(self.each_point(center), offsets, self.each_point(unit)).unflatten(-1, (*split[1:], 2))
        return self.out(ms_deform_attn(value, shapes, locations, weights))

    def each_point(self, x: Tensor) -> Tensor:
        """(B, W, L, 2) once for every point: (B, W, 1, L * P * 2)."""
        return x[:, :, None, :, None].expand(-1, -1, -1, -1, self.points, -1).flatten(3)

    def init_star(self) -> None:
        """Offsets start as a star: one direction a head, the p-th point p pixels out; all weights equal."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        star = torch.stack((angle.cos(), angle.sin()), dim=-1)
        star = star / star.abs().amax(-1, keepdim=True)  # H 2, on the border of the unit square
        steps = torch.arange(1, self.points + 1)
        bias = star[:, None, None] * steps[None, None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value.bias, self.out.bias):
            nn.init.zeros_(zero)


def init_stars(module: nn.Module) -> None:
    """The beginning of every deformable attention within a module, after init_xavier."""
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.init_star()


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward."""

    def __init__(
        self, width: int, heads: int, ffn: int, dropout: float, activation: type[nn.Module], levels: int, points: int
    ):
        super().__init__()
        self.attention = DeformableAttention(width, heads, levels, points)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, ffn, dropout, activation)

    def forward(self, x: Tensor, reference: Tensor, image: Pyramid) -> Tensor:
        found = self.attention(x + image.position, reference, x, image.padding, image.shapes)
        return self.feed_forward(self.norm(x + self.dropout(found)))


class DeformableEncoder(nn.Module):
    """Every pixel of every level samples around itself in all levels."""

    def __init__(self, *, layers: int, **build):
        """`build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(DeformableEncoderLayer(**build) for _ in range(layers))

    def forward(self, image: Pyramid) -> Tensor:
        """Refined tokens (B, S, D)."""
        x, reference = image.tokens, pixel_centers(image)
        for layer in self.layers:
            x = layer(x, reference, image)
        return x


def pixel_centers(image: Pyramid) -> Tensor:
    """Where each token lies, in the padded coordinates of every level: (B, S, L, 2) as x, y."""
    return torch.cat(token_centers(image), dim=1)[:, :, None] * image.valid[:, None]


def token_centers(image: Pyramid) -> list[Tensor]:
    """Where the tokens of each level lie in the image itself: (B, h * w, 2) a level as x, y, above 1 in the padding."""
    centers = []
    for level, (h, w) in enumerate(image.shapes):
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        pixel = torch.stack((x, y), dim=-1).flatten(0, 1).to(image.valid)  # hw 2
        centers.append(pixel / image.extent(level)[:, None])
    return centers


class DeformableDecoderLayer(nn.Module):
    """Self-attention among the queries, deformable cross-attention, feed-forward."""

    def __init__(
        self, width: int, heads: int, ffn: int, dropout: float, activation: type[nn.Module], levels: int, points: int
    ):
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = DeformableAttention(width, heads, levels, points)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, ffn, dropout, activation)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, memory: Tensor, image: Pyramid, blocked: Tensor | None
    ) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attention(x, position, blocked)))
        found = self.cross_attention(x + position, reference, memory, image.padding, image.shapes)
        return self.feed_forward(self.norm2(x + self.dropout(found)))


class DeformableDecoder(nn.Module):
    """Decoder layers that sample around reference points or boxes, with `refine` box by box.

    With `look_twice` (DINO, Sec. 3.5) the loss of a layer's box also reaches the layer before, which it was refined from; with
    `norm` heads see the states after a common norm, and references are refined from those before it.
    """

    def __init__(
        self,
        *,
        layers: int,
        refine: bool,
        locate: nn.Module,
        width: int,
        look_twice: bool = False,
        norm: bool = False,
        **build,
    ):
        """`width` and `build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(DeformableDecoderLayer(width=width, **build) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.locate = locate  # AnchorPosition, PointPosition or ProposalPosition
        self.refine = refine
        self.look_twice = look_twice

    def forward(
        self, queries: Queries, memory: Tensor, image: Pyramid, heads: DetectionHeads
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (L, B, W, D), boxes (L, B, W, 4) and the initial references (B, W, 2 or 4)."""
        x, blocked = queries.content, queries.blocked()
        start = reference = refined = self.locate.reference(queries.position)
        states, boxes = [], []
        for i, layer in enumerate(self.layers):
            valid = image.valid.repeat(1, 1, reference.shape[-1] // 2)  # B L (2 or 4)
            scaled = reference[:, :, None] * valid[:, None]  # B W L (2 or 4)
            x = layer(x, self.locate(i, x, queries.position, located(reference, scaled)), scaled, memory, image, blocked)
            states.append(self.norm(x))
            boxes.append(heads.boxes(i, states[-1], refined))
            if self.look_twice and layer is not self.layers[-1]:
                refined = heads.boxes(i, x, reference)
                reference = refined.detach()
            elif self.refine:
                refined = reference = boxes[-1].detach()
        return torch.stack(states), torch.stack(boxes), start


def located(reference: Tensor, scaled: Tensor) -> Tensor:
    """What a query's position is embedded from: its box in the image itself (B, W, 4).

    The reference implementation takes the box in the padded image, `scaled` (B, W, L, 4) at the finest level, so that there
    a query means another place in another batch. Without padding both are the same.
    """
    return reference


class AnchorPosition(nn.Module):
    """Positions of queries that are anchor boxes, from the box of each layer (DAB-Deformable-DETR).

    With `scale` positions after the first layer are multiplied by what the content makes of them; DINO leaves that out.
    """

    def __init__(self, width: int, layers: int, *, scale: bool = True):
        super().__init__()
        self.embed = MLP(2 * width, width, width)
        self.content_scale = MLP(width, width, width) if scale and layers > 1 else None
        self.width = width

    def reference(self, position: Tensor) -> Tensor:
        return position.float().sigmoid()

    def forward(self, layer: int, x: Tensor, position: Tensor, reference: Tensor) -> Tensor:
        """The layer's positional embedding (B, W, D), from its reference boxes (B, W, 4)."""
        embedded = self.embed(encode_anchors(reference, self.width // 2).to(x.dtype))
        return embedded * self.content_scale(x) if layer and self.content_scale is not None else embedded


class PointPosition(nn.Module):
    """Positions of queries that are embeddings, each with a 2D reference point (Deformable DETR)."""

    def __init__(self, width: int):
        super().__init__()
        self.point = Linear(width, 2)

    def reference(self, position: Tensor) -> Tensor:
        return self.point(position).float().sigmoid()

    def forward(self, layer: int, x: Tensor, position: Tensor, reference: Tensor) -> Tensor:
        return position


class ProposalPosition(nn.Module):
    """Positions of queries that are proposed boxes, each with an embedding made of it (two-stage Deformable DETR)."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = Linear(2 * width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.width = width

    def start(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Contents (B, N, D) and positions (B, N, D + 4) of queries, from the logits of boxes (B, N, 4)."""
        sine = waves(boxes.sigmoid(), self.width // 2, temperature=10000.0).flatten(-2)  # in the order cx, cy, w, h
        embedding, content = self.norm(self.embed(sine)).chunk(2, dim=-1)
        return content, torch.cat((embedding, boxes), dim=-1)

    def reference(self, position: Tensor) -> Tensor:
        return position[..., self.width :].float().sigmoid()

    def forward(self, layer: int, x: Tensor, position: Tensor, reference: Tensor) -> Tensor:
        return position[..., : self.width]
