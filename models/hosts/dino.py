"""DINO: learned contents at boxes that the encoder proposes, refined box by box, each loss reaching two layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dndetr.models.boxes import inverse_sigmoid
from dndetr.models.deformable import AnchorPosition, DeformableDecoder, DeformableEncoder, init_stars
from dndetr.models.denoising.queries import Known, LabelEmbedding, assemble
from dndetr.models.heads import DetectionHeads
from dndetr.models.neck import Neck
from dndetr.models.proposals import Proposals
from dndetr.models.structures import STRICT, Images, Output, demand, positive, transformer_sizes
from dndetr.models.transformer import init_xavier


@dataclass(frozen=True)
class DinoConfig:
    """Sizes of DINO-4scale by default."""

    name: Literal["dino"] = "dino"
    queries: int = 900
    levels: int = 4
    points: int = 4  # that a query samples in each level and head
    hidden: int = 256
    heads: int = 8
    ffn: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.0

    __pydantic_config__ = STRICT
    untold: ClassVar[str | None] = None  # the setting by which queries can be told nothing

    def __post_init__(self) -> None:
        demand(self, **positive(self, "levels", "points"), **transformer_sizes(self))


class Dino(nn.Module):
    """`forward(images, known)`: the one contract of every host.

    A denoising query is a label without indicator at its box (Sec. 5.1); DINO's own denoising is `noise.contrastive`.
    """

    def __init__(self, config: DinoConfig, *, backbone: nn.Module, num_classes: int, embeddings: Tensor | None = None):
        super().__init__()
        width, layers = config.hidden, config.decoder_layers
        sizes = dict(heads=config.heads, ffn=config.ffn, dropout=config.dropout, activation=nn.ReLU)
        sizes |= dict(width=width, levels=config.levels, points=config.points)
        self.neck = Neck(backbone.channels, width, config.levels)
        self.encoder = DeformableEncoder(layers=config.encoder_layers, **sizes)
        locate = AnchorPosition(width, layers, scale=False)
        self.decoder = DeformableDecoder(layers=layers, refine=True, look_twice=True, norm=True, locate=locate, **sizes)
        self.content = nn.Parameter(torch.empty(config.queries, width))
        self.init_weights()
        self.proposals = Proposals(width, num_classes, config.queries, embeddings=embeddings)
        self.label = LabelEmbedding(num_classes, width, embeddings, indicator=False)
        self.heads = DetectionHeads(width, num_classes, layers, shared=True, embeddings=embeddings)
        self.backbone = backbone

    def init_weights(self) -> None:
        """As in DINO, where the learned contents are a matrix of the transformer and begin like one."""
        init_xavier(self)
        init_stars(self)
        nn.init.normal_(self.neck.level)
        for project in self.neck.project:
            nn.init.zeros_(project.conv.bias)

    def forward(self, images: Images, known: Known | None = None) -> Output:
        image = self.neck(self.backbone(images), temperature=20.0, offset=0.0)
        memory = self.encoder(image)
        anchors, proposals = self.proposals(memory, image)
        content = self.label.looking_for(self.content, known)
        queries = assemble(content, anchors, known, batch=len(memory), label=self.label, locate=inverse_sigmoid)
        states, boxes, start = self.decoder(queries, memory, image, self.heads)
        return Output(self.heads.logits(0, states), boxes, start, queries.layout, proposals=proposals)
