"""The losses: focal for classes, l1 and GIoU for boxes, of every decoder layer, under whatever assignment."""

from dataclasses import dataclass

from models.structures import STRICT, demand


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses (the same for matching and denoising, as in the reference) and the focal parameters."""

    cls: float = 1.0
    box: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    denoising: float = 1.0  # weight of the reconstruction losses beside the matching losses

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        names = ("cls", "box", "giou", "gamma", "denoising")
        rules = {name: (getattr(self, name) >= 0, "0 or more") for name in names}
        demand(self, alpha=(0 <= self.alpha <= 1, "from 0 to 1"), **rules)
