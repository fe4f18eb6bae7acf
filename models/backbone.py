"""Backbones: what turns pixels into feature maps of stride 8, 16 and 32."""

from dataclasses import dataclass
from typing import Literal

from models.structures import STRICT


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, where its weights come from, and its resolution."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "small", "efficientnet_lite0"] = "resnet50"
    weights: str = "default"  # default: the library's ImageNet weights; none: random; else the path of a state dict
    dilation: bool = False  # DC5: the last stage keeps the resolution of the one before it (ResNets only)

    __pydantic_config__ = STRICT
