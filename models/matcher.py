"""Bipartite matching of queries with objects: the Hungarian assignment whose instability the paper measures (Sec. 3.1)."""

from dataclasses import dataclass

from models.structures import STRICT, demand


@dataclass(frozen=True)
class MatchConfig:
    """Weights of the matching cost, as in DAB-DETR: focal class cost, l1 of cxcywh, GIoU."""

    cls: float = 2.0
    box: float = 5.0
    giou: float = 2.0

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        demand(self, **{name: (getattr(self, name) >= 0, "0 or more") for name in ("cls", "box", "giou")})
