"""The one table of hosts: name -> (configuration, class)."""

from torch import nn

from models.backbone import BackboneConfig
from models.dab_detr import DabDetrConfig
from models.deformable_detr import DeformableDetrConfig

HOSTS = {
    "dab_detr": (DabDetrConfig, None),
    "deformable_detr": (DeformableDetrConfig, None),
}


def build_detector(host: DabDetrConfig | DeformableDetrConfig, backbone: BackboneConfig, num_classes: int) -> nn.Module:
    """The detector that a preset describes: `forward(images: Images, known: Known | None = None) -> Output`."""
    raise NotImplementedError
