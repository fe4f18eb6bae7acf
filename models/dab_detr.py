"""DAB-DETR: 4D anchor boxes as queries, modulated conditional attention (Sec. 4.2), the paper's main host."""

from dataclasses import dataclass
from typing import Literal

from models.structures import STRICT, demand, positive


@dataclass(frozen=True)
class DabDetrConfig:
    """Sizes of the paper (Sec. 5.1) by default."""

    name: Literal["dab_detr"] = "dab_detr"
    queries: int = 300
    patterns: int = 0  # 3 in Tables 2 and 4: each anchor is used with 3 learned contents
    anchors: Literal["random", "grid"] = "random"  # initial anchors: learned from U(0, 1) logits, or a regular grid
    hidden: int = 256
    heads: int = 8
    ffn: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.0
    temperature: float = 20.0  # of the image's positional encoding

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        demand(self, **positive(self, "queries", "hidden", "heads", "ffn", "decoder_layers", "temperature"))
