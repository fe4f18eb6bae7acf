"""DAB-DETR: 4D anchor boxes as queries, modulated conditional attention (Sec. 4.2), the paper's main host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from dndetr.models.boxes import inverse_sigmoid
from dndetr.models.conditional import ConditionalDecoder, Memory
from dndetr.models.denoising.queries import Known, LabelEmbedding, Patterns, assemble
from dndetr.models.heads import DetectionHeads, initial_anchors
from dndetr.models.neck import as_tokens
from dndetr.models.structures import STRICT, Images, Output, demand, groups_apart, positive, transformer_sizes
from dndetr.models.transformer import DenseEncoder, init_xavier


@dataclass(frozen=True)
class DabDetrConfig:
    """Sizes of the paper (Sec. 5.1) by default."""

    name: Literal["dab_detr"] = "dab_detr"
    queries: int = 300
    groups: int = 1  # of matching queries while training (Group DETR)
    patterns: int = 0  # 3 in Tables 2 and 4: each anchor is used with 3 learned contents
    anchors: Literal["random", "grid"] = "random"  # initial anchors: logits from N(0, 1) as in DAB-DETR, or a regular grid
    hidden: int = 256
    heads: int = 8
    ffn: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.0
    temperature: float = 20.0  # of the image's positional encoding

    __pydantic_config__ = STRICT
    untold: ClassVar[str | None] = None  # the setting by which queries can be told nothing

    def __post_init__(self) -> None:
        patterns = (self.patterns >= 0, "0 or more")
        demand(self, patterns=patterns, **positive(self, "temperature"), **groups_apart(self), **transformer_sizes(self))


class DabDetr(nn.Module):
    """`forward(images, known)`: the one contract of every host."""

    def __init__(self, config: DabDetrConfig, *, backbone: nn.Module, num_classes: int, embeddings: Tensor | None = None):
        super().__init__()
        width, sizes = config.hidden, dict(heads=config.heads, ffn=config.ffn, dropout=config.dropout)
        self.encoder = DenseEncoder(width=width, layers=config.encoder_layers, **sizes)
        self.decoder = ConditionalDecoder(width=width, layers=config.decoder_layers, levels=1, activation=nn.PReLU, **sizes)
        self.project = nn.Conv2d(backbone.channels[-1], width, kernel_size=1)
        init_xavier(self)
        self.label = LabelEmbedding(num_classes, width, embeddings)
        self.patterns = Patterns(config.patterns, width, config.groups)
        self.anchors = nn.Parameter(initial_anchors(config.queries, config.anchors, config.groups))
        self.groups = config.groups
        self.heads = DetectionHeads(width, num_classes, config.decoder_layers, shared=True, eps=1e-3, embeddings=embeddings)
        self.temperature = config.temperature
        self.backbone = backbone

    def forward(self, images: Images, known: Known | None = None) -> Output:
        tokens, position, padding = as_tokens(self.backbone(images)[-1], self.project, self.temperature)
        tokens = self.encoder(tokens, position, padding)
        content, anchors = self.patterns(self.label.contents(len(self.anchors), known), self.anchors)
        queries = assemble(
            content, anchors, known, batch=len(tokens), label=self.label, locate=inverse_sigmoid, groups=self.groups
        )
        states, boxes = self.decoder(queries, Memory(tokens, position, padding, [tokens.shape[1]]), self.heads)
        return Output(self.heads.logits(0, states), boxes, queries.position.sigmoid(), queries.layout)
