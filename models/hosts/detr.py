"""DETR: queries are embeddings, at no place; classes exclude each other (denoising: Sec. 4.7.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dndetr.models.denoising.queries import Known, LabelEmbedding, assemble
from dndetr.models.heads import DetectionHeads
from dndetr.models.neck import as_tokens
from dndetr.models.structures import STRICT, Images, Output, demand, positive, transformer_sizes
from dndetr.models.transformer import DecoderLayer, DenseEncoder, init_xavier


@dataclass(frozen=True)
class DetrConfig:
    """Sizes of DETR's paper by default."""

    name: Literal["detr"] = "detr"
    queries: int = 100
    groups: int = 1  # of matching queries while training (Group DETR)
    pre_norm: bool = False  # norms before attention and feed-forward, not after
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


class Detr(nn.Module):
    """`forward(images, known)`: the one contract of every host.

    Sec. 4.7.2 adds the label embedding and a linear map of the box to be a denoising query. Here the one is its content and
    the other its position, the two that every attention adds. Matching queries are DETR's own, with content 0: without noise
    this is DETR.
    """

    def __init__(self, config: DetrConfig, *, backbone: nn.Module, num_classes: int, embeddings: Tensor | None = None):
        super().__init__()
        width, layers = config.hidden, config.decoder_layers
        sizes = dict(width=width, heads=config.heads, dropout=config.dropout, pre_norm=config.pre_norm, ffn=config.ffn)
        self.encoder = DenseEncoder(layers=config.encoder_layers, activation=nn.ReLU, scale_positions=False, **sizes)
        self.decoder = Decoder(layers=layers, **sizes)
        init_xavier(self)
        self.project = nn.Conv2d(backbone.channels[-1], width, kernel_size=1)
        self.position = nn.Parameter(torch.randn(config.queries * config.groups, width))
        self.groups = config.groups
        self.label = LabelEmbedding(num_classes, width, embeddings)
        self.place = nn.Linear(4, width)
        self.heads = DetectionHeads(width, num_classes, layers, shared=True, embeddings=embeddings, softmax=True)
        self.backbone = backbone

    def forward(self, images: Images, known: Known | None = None) -> Output:
        tokens, position, padding = as_tokens(self.backbone(images)[-1], self.project, temperature=10000.0)
        tokens = self.encoder(tokens, position, padding)
        content = self.label.looking_for(torch.zeros_like(self.position), known)
        queries = assemble(
            content, self.position, known, batch=len(tokens), label=self.label, locate=self.place, groups=self.groups
        )
        states = self.decoder(queries.content, queries.position, (tokens, position), queries.blocked(), padding)
        boxes = self.heads.boxes(0, states, None)
        return Output(self.heads.logits(0, states), boxes, None, queries.layout, softmax=True)


class Decoder(nn.Module):
    """The layers one after the other; what each gives is normed before the heads see it."""

    def __init__(self, *, layers: int, width: int, **build):
        """`width` and `build` are the sizes of a layer."""
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, **build) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, *seen) -> Tensor:
        """x (B, W, D) to hidden states (L, B, W, D); `seen` is what a layer sees besides."""
        states = []
        for layer in self.layers:
            x = layer(x, *seen)
            states.append(self.norm(x))
        return torch.stack(states)
