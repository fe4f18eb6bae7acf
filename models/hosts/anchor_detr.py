"""Anchor DETR: points with a few learned contents as queries, which look for the rows and columns of objects (Sec. 4.7.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dndetr.models.denoising.queries import Known, LabelEmbedding, Patterns, Queries, assemble
from dndetr.models.heads import MLP, DetectionHeads, grid_points
from dndetr.models.linear import Linear
from dndetr.models.neck import Projection
from dndetr.models.position import encode_anchors, waves
from dndetr.models.row_column import Axes, Grid, RowColumnAttention
from dndetr.models.structures import STRICT, Feature, Images, Output, demand, groups_apart, positive, transformer_sizes
from dndetr.models.transformer import Attention, FeedForward


@dataclass(frozen=True)
class AnchorDetrConfig:
    """Sizes of Anchor DETR's paper by default."""

    name: Literal["anchor_detr"] = "anchor_detr"
    queries: int = 300  # anchor points
    patterns: int = 3  # learned contents that every point is used with
    groups: int = 1  # of matching queries while training (Group DETR)
    anchors: Literal["learned", "grid"] = "learned"  # points that learn, or a regular grid that does not
    attention: Literal["row_column", "plain"] = "row_column"  # how queries and tokens look at the image
    levels: int = 1  # of features, all at the resolution of the last one
    hidden: int = 256
    heads: int = 8
    ffn: int = 1024
    encoder_layers: int = 6  # with several levels every other one attends from level to level
    decoder_layers: int = 6
    dropout: float = 0.0

    __pydantic_config__ = STRICT
    untold: ClassVar[str | None] = None  # the setting by which queries can be told nothing

    def __post_init__(self) -> None:
        demand(self, **positive(self, "patterns", "levels"), **groups_apart(self), **transformer_sizes(self))


class AnchorDetr(nn.Module):
    """`forward(images, known)`: the one contract of every host.

    Matching queries are Anchor DETR's own: patterns at points. A noised object is at the centre of its box, and its label is
    all that it starts from: patterns tell apart the objects of one place, and it is a single one (the paper does not say).
    Where a class to look for is told, its embedding joins the patterns.
    """

    def __init__(self, config: AnchorDetrConfig, *, backbone: nn.Module, num_classes: int, embeddings: Tensor | None = None):
        super().__init__()
        width, layers, decoupled = config.hidden, config.decoder_layers, config.attention == "row_column"
        look = RowColumnAttention if decoupled else PlainAttention
        sizes = dict(width=width, heads=config.heads, ffn=config.ffn, dropout=config.dropout, levels=config.levels)
        self.project = Levels(backbone.channels, backbone.strides, width, config.levels)
        self.places = AxisPlaces(width) if decoupled else PointPlaces(width)
        self.encoder = Encoder(layers=config.encoder_layers, look=look, **sizes)
        self.decoder = Decoder(layers=layers, look=look, **sizes)
        for module in self.modules():
            if isinstance(module, (Attention, RowColumnAttention)):
                init_as_stacked(module)
        self.label = LabelEmbedding(num_classes, width, embeddings)
        self.patterns = Patterns(config.patterns, width, config.groups)
        if config.anchors == "learned":
            self.points = nn.Parameter(torch.rand(config.queries * config.groups, 2))
        else:  # column after column, as in the reference
            self.register_buffer("points", grid_points(config.queries).flip(-1), persistent=False)
        self.groups, self.width = config.groups, width
        self.heads = DetectionHeads(width, num_classes, layers, shared=True, eps=1e-5, embeddings=embeddings)
        nn.init.constant_(self.heads.box[0].layers[-1].bias[2:], -2.0)  # first boxes of sigmoid(-2), an eighth
        self.backbone = backbone

    def forward(self, images: Images, known: Known | None = None) -> Output:
        tokens, padding = self.project(self.backbone(images))
        image = Grid(tokens, self.places.of_image(centers(tokens, padding)), padding)
        image = self.encoder(image, self.places.of_tokens(image))
        queries = self.queries(len(tokens) // len(self.project.chosen), known)
        states = self.decoder(queries, image, self.places)
        boxes = self.heads.boxes(0, states, queries.position)
        return Output(self.heads.logits(0, states), boxes, queries.position, queries.layout)

    def queries(self, batch: int, known: Known | None) -> Queries:
        """Positions are points (B, W, 2) as they are, in [0, 1]."""
        content = self.label.looking_for(self.points.new_zeros(len(self.points), self.width), known)
        content, points = self.patterns(content, self.points)
        return assemble(content, points, known, batch=batch, label=self.label, locate=lambda b: b[..., :2], groups=self.groups)


class Levels(nn.Module):
    """The last feature maps at one width and the resolution of the very last; finer ones by a convolution with a stride.

    A backbone with fewer maps gives its last one to several levels, each with a projection of its own.
    """

    def __init__(self, channels: list[int], strides: list[int], width: int, levels: int):
        super().__init__()
        chosen = list(range(len(channels)))[-levels:]
        self.chosen = chosen + chosen[-1:] * (levels - len(chosen))
        finer = [strides[-1] // strides[i] for i in self.chosen]
        self.project = nn.ModuleList(
            Projection(channels[i], width, kernel_size=2 * step - 1, stride=step, padding=step - 1)
            for i, step in zip(self.chosen, finer, strict=True)
        )
        for projection in self.project:
            nn.init.xavier_uniform_(projection.conv.weight)
            nn.init.zeros_(projection.conv.bias)

    def forward(self, features: list[Feature]) -> tuple[Tensor, Axes | None]:
        """Tokens (B * levels, h, w, D), the levels of an image beside each other, and where the padding is."""
        levels = [project(features[i]) for project, i in zip(self.project, self.chosen, strict=True)]
        tokens = torch.stack([level.x for level in levels], dim=1).flatten(0, 1).permute(0, 2, 3, 1)
        padding = levels[-1].padding  # B h w
        if padding is None:
            return tokens, None
        padding = padding.repeat_interleave(len(levels), dim=0)
        return tokens, Axes(padding[:, 0], padding[:, :, 0])


def centers(tokens: Tensor, padding: Axes | None) -> Axes:
    """Where columns (B, w) and rows (B, h) have their centres, in [0, 1] of the unpadded image."""
    axes = []
    for axis, size in enumerate((tokens.shape[2], tokens.shape[1])):
        valid = torch.ones(len(tokens), size, device=tokens.device) if padding is None else (~padding[axis]).float()
        count = valid.cumsum(1)
        axes.append((count - 0.5) / count[:, -1:])
    return Axes(*axes)


class PointPlaces(nn.Module):
    """Encodes points as a whole."""

    def __init__(self, width: int):
        super().__init__()
        self.both = MLP(width, width, width)
        self.width = width

    def among(self, points: Tensor) -> Tensor:
        """(..., 2) to (..., D), for self-attention."""
        return self.both(encode_anchors(points, self.width // 2))

    def of_points(self, points: Tensor) -> Tensor:
        """(..., 2) to (..., D), for looking at the image."""
        return self.among(points)

    def of_image(self, centers: Axes) -> Tensor:
        """(B, w) and (B, h) to (B, h * w, D)."""
        x, y = centers
        shape = (len(x), y.shape[1], x.shape[1])
        return self.of_points(torch.stack((x[:, None].expand(shape), y[:, :, None].expand(shape)), dim=-1).flatten(1, 2))

    def of_tokens(self, image: Grid) -> Tensor:
        """(B, h * w, D)."""
        return image.place


class AxisPlaces(PointPlaces):
    """Encodes also x and y apart, with one perceptron for both."""

    def __init__(self, width: int):
        super().__init__(width)
        self.one = MLP(width, width, width)

    def of_points(self, points: Tensor) -> Axes:
        """(..., 2) to twice (..., D)."""
        return self.of_image(Axes(*points.unbind(-1)))

    def of_image(self, centers: Axes) -> Axes:
        """(B, w) and (B, h) to (B, w, D) and (B, h, D)."""
        return Axes(*(self.one(waves(axis, self.width, temperature=10000.0)) for axis in centers))

    def of_tokens(self, image: Grid) -> Axes:
        """Twice (B, h * w, D)."""
        shape = image.tokens.shape
        return Axes(*(x.expand(shape).flatten(1, 2) for x in (image.place.x[:, None], image.place.y[:, :, None])))


class PlainAttention(Attention):
    """Ordinary attention on the tokens of an image."""

    def forward(self, x: Tensor, at: Tensor, image: Grid) -> Tensor:
        """x (B, W, D) with positions `at` (B, W, D): (B, W, D)."""
        return super().forward(x, at, image.hidden(), (image.tokens.flatten(1, 2), image.place))


class LevelAttention(Attention):
    """Every token looks at those at its place of all levels."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """x (B * L, S, D), level (L, D)."""
        levels = len(level)
        together = x.unflatten(0, (-1, levels)).transpose(1, 2).flatten(0, 1)  # BS L D
        found = super().forward(together, level)
        return found.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)


def init_as_stacked(attention: Attention | RowColumnAttention) -> None:
    """As PyTorch's attention and the reference's begin: what is projected has one matrix with Xavier's bound, biases are 0."""
    *projections, out = (module for module in attention.children() if isinstance(module, nn.Linear))
    bound = (6 / (out.in_features * (len(projections) + 1))) ** 0.5
    for projection in projections:
        nn.init.uniform_(projection.weight, -bound, bound)
        nn.init.zeros_(projection.bias)
    nn.init.zeros_(out.bias)


class Encoder(nn.Module):
    """Layers in which tokens look at their own level; with several every other one from level to level."""

    def __init__(self, *, layers: int, levels: int, look: type[nn.Module], width: int, heads: int, ffn: int, dropout: float):
        super().__init__()
        crossing = layers // 2 if levels > 1 else 0
        build = (width, ffn, dropout)
        self.layers = nn.ModuleList(EncoderLayer(look(width, heads, dropout), *build) for _ in range(layers - crossing))
        self.level_layers = nn.ModuleList(EncoderLayer(LevelAttention(width, heads, dropout), *build) for _ in range(crossing))
        self.level = nn.Parameter(torch.randn(levels, width)) if crossing else None

    def forward(self, image: Grid, at: Axes | Tensor) -> Grid:
        """The image with other tokens; `at` are their positions as those of queries."""
        for i, layer in enumerate(self.layers):
            x = layer(image.tokens.flatten(1, 2), at, image)
            if i < len(self.level_layers):
                x = self.level_layers[i](x, self.level)
            image = image._replace(tokens=x.view_as(image.tokens))
        return image


class EncoderLayer(nn.Module):
    """Some attention and feed-forward."""

    def __init__(self, attention: nn.Module, width: int, ffn: int, dropout: float):
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, ffn, dropout, nn.ReLU)

    def forward(self, x: Tensor, *seen) -> Tensor:
        """x (B, S, D); `seen` is what the attention takes besides."""
        return self.feed_forward(self.norm(x + self.dropout(self.attention(x, *seen))))


class Decoder(nn.Module):
    """The layers one after the other; points stay where they are."""

    def __init__(self, *, layers: int, levels: int, width: int, **build):
        """`width` and `build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(levels=levels, width=width, **build) for _ in range(layers))
        self.levels = levels

    def forward(self, queries: Queries, image: Grid, places: PointPlaces) -> Tensor:
        """Hidden states (L, B, W, D)."""
        x, blocked, points = queries.content, queries.blocked(), queries.position
        among, at = places.among(points), places.of_points(for_each_level(points, self.levels))
        states = []
        for layer in self.layers:
            x = layer(x, among, at, image, blocked)
            states.append(x)
        return torch.stack(states)


class DecoderLayer(nn.Module):
    """Self-attention, a look at the image, feed-forward."""

    def __init__(self, *, look: type[nn.Module], width: int, heads: int, ffn: int, dropout: float, levels: int):
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = look(width, heads, dropout)
        self.merge = Linear(width * levels, width) if levels > 1 else None
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, ffn, dropout, nn.ReLU)
        self.dropout = nn.Dropout(dropout)
        self.levels = levels

    def forward(self, x: Tensor, among: Tensor, at: Axes | Tensor, image: Grid, blocked: Tensor | None) -> Tensor:
        """x (B, W, D) at the encoded points `among` (B, W, D), as the image is asked `at` (B * levels, W, D)."""
        x = self.norm1(x + self.dropout(self.self_attention(x, among, blocked)))
        found = self.cross_attention(for_each_level(x, self.levels), at, image)
        if self.merge is not None:
            found = self.merge(found.unflatten(0, (-1, self.levels)).permute(0, 2, 3, 1).flatten(2))  # B W D L
        x = self.norm2(x + self.dropout(found))
        return self.feed_forward(x)


def for_each_level(x: Tensor, levels: int) -> Tensor:
    """Queries (B, W, ...) to (B * levels, W, ...), in the order of the image's tokens."""
    return x.repeat_interleave(levels, dim=0)
