"""The optimiser and its learning rate."""

from __future__ import annotations

import torch
from torch import nn

from dndetr.config import TrainConfig

WARMUP = 0.1  # of the steps of a training that its warm-up takes at most


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups, the backbone with its own learning rate; the weight decay is everywhere the same.

    So does DN-DETR. Parameters that need no gradient are left out. A backbone rate of 0 freezes the backbone's weights.
    """
    if not config.backbone_lr:
        model.backbone.requires_grad_(False)
    backbone = {id(p) for p in model.backbone.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in backbone], "lr": config.lr},
        {"params": [p for p in trained if id(p) in backbone], "lr": config.backbone_lr},
    ]
    groups = [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's learning rate becomes its own base times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """What the learning rates are multiplied by in `step` (0 is the first).

    Linear warm-up to 1, see `warmup_steps`, then x 0.1 after `drop_epoch` epochs, where a fraction counts steps.
    """
    warmup = min(1.0, (step + 1) / max(1, warmup_steps(config, steps_per_epoch)))
    dropped = step >= round(config.drop_epoch * steps_per_epoch)
    return warmup * (0.1 if dropped else 1.0)


def warmup_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """The steps of the warm-up: those of the settings, at most WARMUP of the training.

    A training of few images may be shorter than a warm-up that was set for many, and would never reach its rate.
    """
    return min(config.warmup_steps, int(WARMUP * steps_per_epoch * config.epochs))
