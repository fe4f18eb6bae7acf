"""Deformable DETR with anchor boxes as queries (Sec. 4.6), in the paper's two forms, and with points as a baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dndetr.models.boxes import inverse_sigmoid
from dndetr.models.conditional import ConditionalDecoder, Memory
from dndetr.models.deformable import (
    AnchorPosition,
    DeformableAttention,
    DeformableDecoder,
    DeformableEncoder,
    PointPosition,
    Pyramid,
)
from dndetr.models.denoising.queries import Known, LabelEmbedding, Patterns, Queries, assemble, plain, with_indicator
from dndetr.models.heads import DetectionHeads, initial_anchors
from dndetr.models.position import encode_image
from dndetr.models.structures import STRICT, Feature, Images, Output, demand, positive, transformer_sizes
from dndetr.models.transformer import init_xavier


@dataclass(frozen=True)
class DeformableDetrConfig:
    """`decoder: deformable` is DN-Deformable-DETR++, `decoder: dense` the form of the conference version."""

    name: Literal["deformable_detr"] = "deformable_detr"
    decoder: Literal["deformable", "dense"] = "deformable"
    query: Literal["box", "point"] = "box"  # point: plain Deformable DETR, 2D reference points, without denoising
    refine: bool = True  # boxes are refined from layer to layer; only the plain form (query: point) can do without
    queries: int = 300
    patterns: int = 0  # dense decoder only
    anchors: Literal["random", "grid"] = "random"
    levels: int = 4
    points: int = 4  # that a query samples in each level and head: in the encoder and, unless they have their own, the decoder
    decoder_points: int | None = None  # in the decoder, null = `points`; deformable decoder only
    hidden: int = 256
    heads: int = 8
    ffn: int = 1024
    activation: Literal["relu", "prelu"] = "relu"
    encoder_layers: int = 6
    decoder_layers: int = 6
    shared_heads: bool = False
    dropout: float = 0.0

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        dense, points = self.decoder == "dense", self.query == "point"
        demand(
            self,
            query=(not (points and dense), "box with decoder: dense"),
            refine=(self.refine or points, "true unless query is point"),
            patterns=(self.patterns == 0 or (dense and self.patterns > 0), "0 unless decoder is dense, then 0 or more"),
            decoder_points=(
                self.decoder_points is None or (not dense and self.decoder_points > 0),
                "null unless decoder is deformable, then null or above 0",
            ),
            **positive(self, "levels", "points"),
            **transformer_sizes(self),
        )


class DeformableDetr(nn.Module):
    """One encoder, three decoders: boxes with deformable or dense attention, points with deformable attention."""

    def __init__(
        self, config: DeformableDetrConfig, *, backbone: nn.Module, num_classes: int, embeddings: Tensor | None = None
    ):
        super().__init__()
        width, layers = config.hidden, config.decoder_layers
        activation = {"relu": nn.ReLU, "prelu": nn.PReLU}[config.activation]
        sizes = dict(width=width, heads=config.heads, ffn=config.ffn, dropout=config.dropout, activation=activation)
        self.dense, self.points = config.decoder == "dense", config.query == "point"
        self.neck = Neck(backbone.channels, width, config.levels)
        self.encoder = DeformableEncoder(layers=config.encoder_layers, levels=config.levels, points=config.points, **sizes)
        if self.dense:
            self.decoder = ConditionalDecoder(layers=layers, levels=config.levels, **sizes)
        else:
            locate = PointPosition(width) if self.points else AnchorPosition(width, layers)
            points = config.points if config.decoder_points is None else config.decoder_points
            sizes |= dict(levels=config.levels, points=points)
            self.decoder = DeformableDecoder(layers=layers, refine=config.refine, locate=locate, **sizes)
        init_xavier(self)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.init_star()
        shared = config.shared_heads or self.dense or not config.refine
        eps = 1e-5 if self.points else 1e-3
        self.heads = DetectionHeads(width, num_classes, layers, shared=shared, eps=eps, embeddings=embeddings)
        if config.query == "point" or config.anchors == "random":
            nn.init.constant_(self.heads.box[0].layers[-1].bias[2:], -2.0)  # first boxes of sigmoid(-2), an eighth
        self.init_queries(config, num_classes, embeddings)
        # The dense form follows DAB-DETR's encoding, the deformable one Deformable DETR's.
        self.temperature, self.offset = (20.0, 0.0) if self.dense else (10000.0, -0.5)
        self.backbone = backbone

    def init_queries(self, config: DeformableDetrConfig, num_classes: int, embeddings: Tensor | None) -> None:
        width, queries = config.hidden, config.queries
        if self.points:
            self.content = nn.Parameter(torch.randn(queries, width))
            self.position = nn.Parameter(torch.randn(queries, width))
            return
        self.label = LabelEmbedding(num_classes, width, embeddings)
        self.anchors = nn.Parameter(initial_anchors(queries, config.anchors))
        if self.dense:
            self.patterns = Patterns(config.patterns, width)
        else:
            self.content = nn.Parameter(torch.randn(queries, width - 1))

    def forward(self, images: Images, known: Known | None = None) -> Output:
        image = self.neck(self.backbone(images), self.temperature, self.offset)
        memory = self.encoder(image)
        queries = self.queries(len(memory), known)
        if self.dense:
            states, boxes = self.decoder(queries, Memory(memory, image.position, image.padding, image.sizes), self.heads)
            anchors = queries.position.sigmoid()
        else:
            states, boxes, anchors = self.decoder(queries, memory, image, self.heads)
        logits = torch.stack([self.heads.logits(i, state) for i, state in enumerate(states)])
        return Output(logits, boxes, anchors, queries.layout)

    def queries(self, batch: int, known: Known | None) -> Queries:
        if self.points:
            return plain(self.content, self.position, known, batch=batch)
        if self.dense:
            content, anchors = self.patterns(self.label.contents(len(self.anchors), known), self.anchors)
        else:
            content, anchors = with_indicator(self.content, 0.0), self.anchors
            if known is not None and known.label is not None:  # in place of what was learned, which stays in the graph
                content = self.label.contents(len(anchors), known) + 0 * content
        return assemble(content, anchors, known, batch=batch, label=self.label, locate=inverse_sigmoid)


class Neck(nn.Module):
    """Brings backbone features to one width; missing levels come from 3 x 3 convolutions of stride 2."""

    def __init__(self, channels: list[int], width: int, levels: int):
        super().__init__()
        self.kept = min(len(channels), levels)  # the coarsest ones
        kept = [Projection(c, width) for c in channels[-self.kept :]]
        sources = [channels[-1]] + [width] * levels  # the first extra level starts from the backbone, the next from it
        extra = [Projection(c, width, kernel_size=3, stride=2, padding=1) for c in sources[: levels - self.kept]]
        self.project = nn.ModuleList(kept + extra)
        self.level = nn.Parameter(torch.randn(levels, width))
        self.width = width

    def forward(self, features: list[Feature], temperature: float, offset: float) -> Pyramid:
        features = features[-self.kept :]
        levels = [project(feature) for project, feature in zip(self.project, features, strict=False)]
        last = features[-1]
        for project in self.project[self.kept :]:
            last = project(last)
            levels.append(last)
        positions = [encode_image(level, self.width, temperature, offset) + self.level[i] for i, level in enumerate(levels)]
        padded = last.padding is not None
        return Pyramid(
            tokens=torch.cat([level.x.flatten(2).transpose(1, 2) for level in levels], dim=1),
            position=torch.cat(positions, dim=1).to(last.x.dtype),
            padding=torch.cat([level.padding.flatten(1) for level in levels], dim=1) if padded else None,
            shapes=[(level.x.shape[2], level.x.shape[3]) for level in levels],
            valid=torch.stack([valid_share(level) for level in levels], dim=1),
        )


class Projection(nn.Module):
    """A convolution and a group norm that do not know how far the image was padded.

    The reference convolves and normalises the padding as well, so that there an image's result depends on the batch.
    """

    def __init__(self, inner: int, outer: int, kernel_size: int = 1, stride: int = 1, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel_size, stride, padding)
        self.norm = nn.GroupNorm(math.gcd(32, outer), outer)

    def forward(self, feature: Feature) -> Feature:
        """The level at the resolution and width of the convolution."""
        x, padding = feature
        if padding is None:
            return Feature(self.norm(self.conv(x)), None)
        shrunk = padding[:, :: self.conv.stride[0], :: self.conv.stride[1]]
        x = self.conv(x.masked_fill(padding[:, None], 0))
        return Feature(masked_group_norm(x, shrunk, self.norm), shrunk)


def masked_group_norm(x: Tensor, padding: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`norm` of x (B, C, h, w) with the statistics of the unpadded pixels alone."""
    groups = x.float().unflatten(1, (norm.num_groups, -1))  # B G c h w
    valid = (~padding)[:, None, None].float()
    count = valid.sum((2, 3, 4), keepdim=True) * groups.shape[2]
    mean = (groups * valid).sum((2, 3, 4), keepdim=True) / count
    centered = groups - mean
    variance = (centered.square() * valid).sum((2, 3, 4), keepdim=True) / count
    normed = (centered * (variance + norm.eps).rsqrt()).flatten(1, 2)
    return (normed * norm.weight[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


def valid_share(feature: Feature) -> Tensor:
    """The unpadded share of width and height (B, 2)."""
    x, padding = feature
    if padding is None:
        return x.new_ones((len(x), 2), dtype=torch.float32)
    return torch.stack(((~padding[:, 0]).float().mean(1), (~padding[:, :, 0]).float().mean(1)), dim=1)
