"""Deformable DETR with anchor boxes as queries (Sec. 4.6), in the paper's two forms, and with points as a baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.backbone import shrink
from models.boxes import inverse_sigmoid
from models.conditional import ConditionalDecoder
from models.deformable import (
    AnchorPosition,
    DeformableAttention,
    DeformableDecoder,
    DeformableEncoder,
    PointPosition,
    Pyramid,
)
from models.denoising.queries import Known, LabelEmbedding, Patterns, Queries, assemble, plain, with_indicator
from models.heads import DetectionHeads, initial_anchors
from models.position import encode_image
from models.structures import STRICT, Images, Output
from models.transformer import init_xavier


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
    points: int = 4
    hidden: int = 256
    heads: int = 8
    ffn: int = 1024
    activation: Literal["relu", "prelu"] = "relu"
    encoder_layers: int = 6
    decoder_layers: int = 6
    shared_heads: bool = False
    dropout: float = 0.0

    __pydantic_config__ = STRICT


class DeformableDetr(nn.Module):
    """One encoder, three decoders: boxes with deformable or dense attention, points with deformable attention."""

    def __init__(self, config: DeformableDetrConfig, *, backbone: nn.Module, num_classes: int):
        super().__init__()
        width, layers = config.hidden, config.decoder_layers
        activation = {"relu": nn.ReLU, "prelu": nn.PReLU}[config.activation]
        sizes = dict(width=width, heads=config.heads, ffn=config.ffn, dropout=config.dropout, activation=activation)
        sampling = dict(levels=config.levels, points=config.points)
        self.dense, self.points = config.decoder == "dense", config.query == "point"
        self.neck = Neck(backbone.channels, width, config.levels)
        self.encoder = DeformableEncoder(layers=config.encoder_layers, **sizes, **sampling)
        if self.dense:
            self.decoder = ConditionalDecoder(layers=layers, levels=config.levels, **sizes)
        else:
            locate = PointPosition(width) if self.points else AnchorPosition(width, layers)
            self.decoder = DeformableDecoder(layers=layers, refine=config.refine, locate=locate, **sizes, **sampling)
        init_xavier(self)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.init_star()
        shared = config.shared_heads or self.dense or not config.refine
        self.heads = DetectionHeads(width, num_classes, layers, shared=shared, eps=1e-5 if self.points else 1e-3)
        if config.query == "point" or config.anchors == "random":
            nn.init.constant_(self.heads.box[0].layers[-1].bias[2:], -2.0)  # first boxes of sigmoid(-2), an eighth
        self.init_queries(config, num_classes)
        # The dense form follows DAB-DETR's encoding, the deformable one Deformable DETR's.
        self.temperature, self.offset = (20.0, 0.0) if self.dense else (10000.0, -0.5)
        self.backbone = backbone

    def init_queries(self, config: DeformableDetrConfig, num_classes: int) -> None:
        width, queries = config.hidden, config.queries
        if self.points:
            self.content = nn.Parameter(torch.randn(queries, width))
            self.position = nn.Parameter(torch.randn(queries, width))
            return
        self.label = LabelEmbedding(num_classes, width)
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
            decode = (image.position, image.padding, image.sizes, self.heads)
            states, boxes = self.decoder(queries, memory, *decode)
            anchors = queries.position.sigmoid()
        else:
            states, boxes, anchors = self.decoder(queries, memory, image, self.heads)
        logits = torch.stack([self.heads.logits(i, state) for i, state in enumerate(states)])
        return Output(logits, boxes, anchors, queries.layout)

    def queries(self, batch: int, known: Known | None) -> Queries:
        if self.points:
            return plain(self.content, self.position, known, batch=batch)
        if self.dense:
            content, anchors = self.patterns(self.label.unknowns(len(self.anchors)), self.anchors)
        else:
            content, anchors = with_indicator(self.content, 0.0), self.anchors
        return assemble(content, anchors, known, batch=batch, label=self.label, locate=inverse_sigmoid)


class Neck(nn.Module):
    """Brings backbone features to one width; missing levels come from 3 x 3 convolutions of stride 2."""

    def __init__(self, channels: list[int], width: int, levels: int):
        super().__init__()
        self.kept = min(len(channels), levels)  # the coarsest ones
        channels = channels[-self.kept :]
        sources = channels[-1:] + [width] * levels
        groups = math.gcd(32, width)
        same = [(nn.Conv2d(c, width, kernel_size=1), nn.GroupNorm(groups, width)) for c in channels]
        extra = [
            (nn.Conv2d(c, width, kernel_size=3, stride=2, padding=1), nn.GroupNorm(groups, width))
            for c in sources[: levels - self.kept]
        ]
        self.project = nn.ModuleList(nn.Sequential(*pair) for pair in same + extra)
        self.level = nn.Parameter(torch.randn(levels, width))
        self.width = width

    def forward(self, features: list[tuple[Tensor, Tensor]], temperature: float, offset: float) -> Pyramid:
        features = features[-self.kept :]
        maps = [project(x) for project, (x, _) in zip(self.project, features, strict=False)]
        paddings = [padding for _, padding in features]
        x, padding = features[-1]
        for project in self.project[self.kept :]:
            x = project(x)
            maps.append(x)
            paddings.append(shrink(padding, x.shape[-2:]))
        positions = [encode_image(p, self.width, temperature, offset) + self.level[i] for i, p in enumerate(paddings)]
        return Pyramid(
            tokens=torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1),
            position=torch.cat(positions, dim=1).to(maps[0].dtype),
            padding=torch.cat([p.flatten(1) for p in paddings], dim=1),
            shapes=torch.tensor([m.shape[-2:] for m in maps]),
            valid=torch.stack([valid_share(p) for p in paddings], dim=1),
        )


def valid_share(padding: Tensor) -> Tensor:
    """(B, h, w) padding to the unpadded share of width and height (B, 2)."""
    return torch.stack(((~padding[:, 0]).float().mean(1), (~padding[:, :, 0]).float().mean(1)), dim=1)
