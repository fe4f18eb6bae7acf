"""SAM-DETR: queries are aligned with the image before they look at it; with several levels it is SAM-DETR++ (Sec. 4.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dndetr.models.aligner import AlignedDecoder, levels_of
from dndetr.models.boxes import inverse_sigmoid
from dndetr.models.deformable import DeformableEncoder, init_stars
from dndetr.models.denoising.queries import Known, LabelEmbedding, assemble
from dndetr.models.heads import DetectionHeads, initial_anchors
from dndetr.models.neck import Neck
from dndetr.models.structures import STRICT, Images, Output, demand, groups_apart, positive, transformer_sizes
from dndetr.models.transformer import DenseEncoder, init_xavier


@dataclass(frozen=True)
class SamDetrConfig:
    """SAM-DETR++ by default. SAM-DETR itself has one level and a dropout of 0.1, and smca or not.

    The code of SAM-DETR++ was not published. This is SAM-DETR's own form of several levels with SMCA, without dropout: what
    is known of the other, and its parameters and multiply-adds.
    """

    name: Literal["sam_detr"] = "sam_detr"
    levels: int = 3  # 1: a dense encoder of the coarsest level; more: a deformable one, and two decoder layers a level
    smca: bool = True  # attention falls off around the salient points
    norm: bool = False  # a norm before the dense encoder: SAM-DETR has it where it trains for less than 25 epochs
    queries: int = 300
    groups: int = 1  # of matching queries while training (Group DETR)
    anchors: Literal["random", "grid"] = "random"
    points: int = 4  # that the deformable encoder samples in each level and head
    hidden: int = 256
    heads: int = 8
    ffn: int = 2048  # half as wide in the deformable encoder
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.0

    __pydantic_config__ = STRICT
    untold: ClassVar[str | None] = None  # the setting by which queries can be told nothing

    def __post_init__(self) -> None:
        single = (not self.norm or self.levels == 1, "false with several levels, which always have it")
        demand(self, norm=single, **positive(self, "levels", "points"), **groups_apart(self), **transformer_sizes(self))


class SamDetr(nn.Module):
    """`forward(images, known)`: the one contract of every host.

    Contents of matching queries are empty, as in SAM-DETR; a denoising query's is its label's. It reaches self-attention at
    once, and cross-attention through the gates of the aligner, which looks into the noised box.
    """

    def __init__(self, config: SamDetrConfig, *, backbone: nn.Module, num_classes: int, embeddings: Tensor | None = None):
        super().__init__()
        width, layers, self.dense = config.hidden, config.decoder_layers, config.levels == 1
        sizes = dict(width=width, heads=config.heads, dropout=config.dropout)
        several = dict(levels=config.levels, points=config.points, ffn=config.ffn // 2)
        if self.dense:
            one = dict(ffn=config.ffn, scale_positions=False)
            self.encoder = DenseEncoder(layers=config.encoder_layers, activation=nn.ReLU, **one, **sizes)
        else:
            self.encoder = DeformableEncoder(layers=config.encoder_layers, activation=nn.ReLU, **several, **sizes)
        self.decoder = AlignedDecoder(layers=layers, smca=config.smca, ffn=config.ffn, **sizes)
        init_xavier(self)
        init_stars(self)
        for layer in self.decoder.layers:
            nn.init.zeros_(layer.aligner.points.layers[-1].bias)
        self.neck = Neck(backbone.channels, width, config.levels, norm=config.norm or not self.dense, embed=not self.dense)
        init_xavier(self.neck.project)
        self.label = LabelEmbedding(num_classes, width, embeddings)
        self.anchors = nn.Parameter(initial_anchors(config.queries, config.anchors, config.groups))
        self.groups = config.groups
        self.heads = DetectionHeads(width, num_classes, layers, shared=False, eps=1e-5, embeddings=embeddings)
        self.backbone = backbone

    def forward(self, images: Images, known: Known | None = None) -> Output:
        image = self.neck(self.backbone(images), temperature=10000.0, offset=-0.5)
        memory = self.encoder(image.tokens, image.position, image.padding) if self.dense else self.encoder(image)
        content = self.label.looking_for(self.anchors.new_zeros(len(self.anchors), memory.shape[-1]), known)
        queries = assemble(
            content, self.anchors, known, batch=len(memory), label=self.label, locate=inverse_sigmoid, groups=self.groups
        )
        states, boxes = self.decoder(queries, levels_of(image, memory), self.heads)
        logits = torch.stack([self.heads.logits(i, state) for i, state in enumerate(states)])
        return Output(logits, boxes, queries.position.sigmoid(), queries.layout)
