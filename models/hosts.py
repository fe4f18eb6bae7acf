"""The one table of hosts: name -> (configuration, class)."""

from models.dab_detr import DabDetrConfig
from models.deformable_detr import DeformableDetrConfig

HOSTS = {
    "dab_detr": (DabDetrConfig, None),
    "deformable_detr": (DeformableDetrConfig, None),
}
