"""Conditional DETR: queries are embeddings with a reference point each, and cross-attention compares places apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dndetr.models.boxes import inverse_sigmoid
from dndetr.models.conditional import Memory, PointDecoder
from dndetr.models.denoising.queries import Known, LabelEmbedding, assemble
from dndetr.models.heads import MLP, DetectionHeads
from dndetr.models.neck import as_tokens
from dndetr.models.structures import STRICT, Images, Output, demand, positive, transformer_sizes
from dndetr.models.transformer import DenseEncoder, init_xavier


@dataclass(frozen=True)
class ConditionalDetrConfig:
    """Sizes of Conditional DETR's paper by default."""

    name: Literal["conditional_detr"] = "conditional_detr"
    queries: int = 300
    groups: int = 1  # of matching queries while training (Group DETR)
    hidden: int = 256
    heads: int = 8
    ffn: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1

    __pydantic_config__ = STRICT
    untold: ClassVar[str | None] = None  # the setting by which queries can be told nothing

    def __post_init__(self) -> None:
        demand(self, **positive(self, "groups"), **transformer_sizes(self))


class ConditionalDetr(nn.Module):
    """`forward(images, known)`: the one contract of every host.

    The paper takes it as a baseline. Where noise is asked for, a denoising query is a label embedding at the centre of its
    box, and the whole box, mapped linearly as in vanilla DETR (Sec. 4.7.2), is its embedding.
    """

    def __init__(
        self, config: ConditionalDetrConfig, *, backbone: nn.Module, num_classes: int, embeddings: Tensor | None = None
    ):
        super().__init__()
        width, layers = config.hidden, config.decoder_layers
        sizes = dict(width=width, heads=config.heads, ffn=config.ffn, dropout=config.dropout, activation=nn.ReLU)
        self.encoder = DenseEncoder(layers=config.encoder_layers, scale_positions=False, **sizes)
        self.decoder = PointDecoder(layers=layers, levels=1, **sizes)
        self.point = MLP(width, width, 2)
        init_xavier(self)
        self.project = nn.Conv2d(backbone.channels[-1], width, kernel_size=1)
        self.position = nn.Parameter(torch.randn(config.queries * config.groups, width))
        self.groups = config.groups
        self.label = LabelEmbedding(num_classes, width, embeddings)
        self.place = Place(width)
        self.heads = DetectionHeads(width, num_classes, layers, shared=True, eps=1e-5, embeddings=embeddings)
        self.backbone = backbone

    def forward(self, images: Images, known: Known | None = None) -> Output:
        tokens, position, padding = as_tokens(self.backbone(images)[-1], self.project, temperature=10000.0)
        tokens = self.encoder(tokens, position, padding)
        content = self.label.looking_for(torch.zeros_like(self.position), known)
        at = torch.cat((self.position, self.point(self.position)), dim=-1)
        queries = assemble(content, at, known, batch=len(tokens), label=self.label, locate=self.place, groups=self.groups)
        states, boxes = self.decoder(queries, Memory(tokens, position, padding, [tokens.shape[1]]), self.heads)
        return Output(self.heads.logits(0, states), boxes, queries.position[..., -2:].float().sigmoid(), queries.layout)


class Place(nn.Module):
    """What a box is as the position of a query: an embedding, and the logits of its centre."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Linear(4, width)

    def forward(self, boxes: Tensor) -> Tensor:
        """(..., 4) to (..., D + 2)."""
        return torch.cat((self.embed(boxes), inverse_sigmoid(boxes[..., :2], eps=1e-5)), dim=-1)
