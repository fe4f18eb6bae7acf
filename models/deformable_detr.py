"""Deformable DETR with anchor boxes as queries (Sec. 4.6), in the paper's two forms, and with points as a baseline."""

from dataclasses import dataclass
from typing import Literal

from models.structures import STRICT


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
    encoder_layers: int = 6
    decoder_layers: int = 6
    shared_heads: bool = False
    dropout: float = 0.0

    __pydantic_config__ = STRICT
