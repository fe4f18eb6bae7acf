"""The one table of hosts: name -> (configuration, class)."""

from __future__ import annotations

from torch import Tensor, nn

from dndetr.models.backbone import BackboneConfig, build_backbone
from dndetr.models.hosts.anchor_detr import AnchorDetr, AnchorDetrConfig
from dndetr.models.hosts.conditional_detr import ConditionalDetr, ConditionalDetrConfig
from dndetr.models.hosts.dab_detr import DabDetr, DabDetrConfig
from dndetr.models.hosts.deformable_detr import DeformableDetr, DeformableDetrConfig
from dndetr.models.hosts.detr import Detr, DetrConfig
from dndetr.models.hosts.dino import Dino, DinoConfig
from dndetr.models.hosts.sam_detr import SamDetr, SamDetrConfig
from dndetr.models.hosts.smca import Smca, SmcaConfig

HOSTS = {
    "dab_detr": (DabDetrConfig, DabDetr),
    "deformable_detr": (DeformableDetrConfig, DeformableDetr),
    "detr": (DetrConfig, Detr),
    "conditional_detr": (ConditionalDetrConfig, ConditionalDetr),
    "dino": (DinoConfig, Dino),
    "anchor_detr": (AnchorDetrConfig, AnchorDetr),
    "sam_detr": (SamDetrConfig, SamDetr),
    "smca": (SmcaConfig, Smca),
}

HostConfig = (
    DabDetrConfig
    | DeformableDetrConfig
    | DetrConfig
    | ConditionalDetrConfig
    | DinoConfig
    | AnchorDetrConfig
    | SamDetrConfig
    | SmcaConfig
)


def build_detector(
    host: HostConfig,
    backbone: BackboneConfig,
    num_classes: int,
    embeddings: Tensor | None = None,
) -> nn.Module:
    """The detector that a preset describes, with random weights; `load_pretrained` of models/backbone.py fetches a backbone's.

    `forward(images: Images, known: Known | None = None) -> Output`. With `embeddings` (C, E) classes are known by these
    vectors (Sec. 5.7.2), see models/labels.py.
    """
    _, detector = HOSTS[host.name]
    return detector(host, backbone=build_backbone(backbone), num_classes=num_classes, embeddings=embeddings)
