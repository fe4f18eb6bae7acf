"""Deformable DETR with anchor boxes as queries (Sec. 4.6), in the paper's two forms, and with points as a baseline.

In two stages queries start from boxes that the encoder proposes: plain ones (`query: point`) are made of these boxes wholly,
as in Deformable DETR; others (`query: box`) have learned contents there, the "mixed query selection" of DINO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dndetr.models.boxes import inverse_sigmoid
from dndetr.models.conditional import ConditionalDecoder, Memory
from dndetr.models.deformable import (
    AnchorPosition,
    DeformableDecoder,
    DeformableEncoder,
    PointPosition,
    ProposalPosition,
    init_stars,
)
from dndetr.models.denoising.queries import Known, LabelEmbedding, Patterns, Queries, assemble, plain, with_indicator
from dndetr.models.heads import DetectionHeads, initial_anchors
from dndetr.models.neck import Neck
from dndetr.models.proposals import Proposals
from dndetr.models.structures import STRICT, Images, Output, demand, positive, transformer_sizes
from dndetr.models.transformer import init_xavier


@dataclass(frozen=True)
class DeformableDetrConfig:
    """`decoder: deformable` is DN-Deformable-DETR++, `decoder: dense` the form of the conference version."""

    name: Literal["deformable_detr"] = "deformable_detr"
    decoder: Literal["deformable", "dense"] = "deformable"
    query: Literal["box", "point"] = "box"  # point: plain Deformable DETR, 2D reference points, without denoising
    refine: bool = True  # boxes are refined from layer to layer; only the plain form (query: point) can do without
    two_stage: bool = False  # queries start from the encoder's proposals; deformable decoder with refinement only
    look_twice: bool = False  # a box's loss reaches the layer before, too (DINO's "look forward twice"); as two_stage
    queries: int = 300
    groups: int = 1  # of matching queries while training (Group DETR); boxes only
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

    @property
    def untold(self) -> str | None:
        """The setting by which queries can be told nothing."""
        return "host.query: point" if self.query == "point" else None

    def __post_init__(self) -> None:
        dense, points = self.decoder == "dense", self.query == "point"
        single = points or self.two_stage or (dense and self.anchors == "grid")  # where groups would all be the same, or none
        demand(
            self,
            query=(not (points and dense), "box with decoder: dense"),
            groups=(
                self.groups > 0 and not (single and self.groups > 1),
                "1 where query is point or two_stage is true, or a dense decoder has anchors: grid, else above 0",
            ),
            **{
                name: (not getattr(self, name) or (self.refine and not dense), "false unless decoder is deformable and refine")
                for name in ("two_stage", "look_twice")
            },
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
        self.dense, self.points, self.two_stage = config.decoder == "dense", config.query == "point", config.two_stage
        self.neck = Neck(backbone.channels, width, config.levels)
        self.encoder = DeformableEncoder(layers=config.encoder_layers, levels=config.levels, points=config.points, **sizes)
        if self.dense:
            self.decoder = ConditionalDecoder(layers=layers, levels=config.levels, **sizes)
        else:
            plain = ProposalPosition(width) if self.two_stage else PointPosition(width)
            locate = plain if self.points else AnchorPosition(width, layers)
            points = config.points if config.decoder_points is None else config.decoder_points
            sizes |= dict(levels=config.levels, points=points)
            sizes |= dict(refine=config.refine, look_twice=config.look_twice)
            self.decoder = DeformableDecoder(layers=layers, locate=locate, **sizes)
        init_xavier(self)
        init_stars(self)
        if self.two_stage:
            self.proposals = Proposals(width, num_classes, config.queries, agnostic=True, embeddings=embeddings)
        shared = config.shared_heads or self.dense or not config.refine
        eps = 1e-5 if self.points else 1e-3
        self.heads = DetectionHeads(width, num_classes, layers, shared=shared, eps=eps, embeddings=embeddings)
        if not self.two_stage and (self.points or config.anchors == "random"):
            nn.init.constant_(self.heads.box[0].layers[-1].bias[2:], -2.0)  # first boxes of sigmoid(-2), an eighth
        self.init_queries(config, num_classes, embeddings)
        # The dense form follows DAB-DETR's encoding, the deformable one Deformable DETR's.
        self.temperature, self.offset = (20.0, 0.0) if self.dense else (10000.0, -0.5)
        self.backbone = backbone

    def init_queries(self, config: DeformableDetrConfig, num_classes: int, embeddings: Tensor | None) -> None:
        width, queries = config.hidden, config.queries
        if self.points:
            if not self.two_stage:
                self.content = nn.Parameter(torch.randn(queries, width))
                self.position = nn.Parameter(torch.randn(queries, width))
            return
        self.label = LabelEmbedding(num_classes, width, embeddings)
        self.groups = config.groups
        if self.two_stage:
            self.content = nn.Parameter(torch.randn(queries, width))
            return
        self.anchors = nn.Parameter(initial_anchors(queries, config.anchors, config.groups))
        if self.dense:
            self.patterns = Patterns(config.patterns, width, config.groups)
        else:
            self.content = nn.Parameter(torch.randn(len(self.anchors), width - 1))

    def forward(self, images: Images, known: Known | None = None) -> Output:
        image = self.neck(self.backbone(images), self.temperature, self.offset)
        memory = self.encoder(image)
        proposed, proposals = self.proposals(memory, image) if self.two_stage else (None, None)
        queries = self.queries(len(memory), known, proposed)
        if self.dense:
            states, boxes = self.decoder(queries, Memory(memory, image.position, image.padding, image.sizes), self.heads)
            anchors = queries.position.sigmoid()
        else:
            states, boxes, anchors = self.decoder(queries, memory, image, self.heads)
        logits = torch.stack([self.heads.logits(i, state) for i, state in enumerate(states)])
        return Output(logits, boxes, anchors, queries.layout, proposals=proposals)

    def queries(self, batch: int, known: Known | None, proposed: Tensor | None) -> Queries:
        if self.points:
            content, position = self.decoder.locate.start(proposed) if self.two_stage else (self.content, self.position)
            return plain(content, position, known, batch=batch)
        if self.dense:
            content, anchors = self.patterns(self.label.contents(len(self.anchors), known), self.anchors)
        else:
            content = self.content if self.two_stage else with_indicator(self.content, 0.0)
            anchors = proposed if self.two_stage else self.anchors
            content = self.label.looking_for(content, known)
        return assemble(content, anchors, known, batch=batch, label=self.label, locate=inverse_sigmoid, groups=self.groups)
