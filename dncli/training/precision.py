"""What is computed in bf16 or fp16, and what always in fp32."""

from __future__ import annotations

import torch
from torch import nn

from dndetr.asking import Look
from dndetr.config import Config
from dndetr.console import UserError
from dndetr.models.denoising.queries import Known
from dndetr.models.structures import Images, Output


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The model's own computations. Anchors, boxes and what divides by their sizes are fp32 within the model."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def looking(model: nn.Module, images: Images, precision: str, device: torch.device) -> Look:
    """The detector before images that may lie elsewhere: told something, it gives the matching part of its output."""
    images = images.to(device, non_blocking=True)

    def look(known: Known | None) -> Output:
        with autocast(precision, device):
            output = model(images, known)
        _, matching = in_fp32(output).split()
        return matching

    return look


def in_fp32(output: Output) -> Output:
    """Matching, losses and detections are computed in fp32 whatever the model's precision."""
    return output.map(torch.Tensor.float)


def check_precision(config: Config, device: torch.device) -> None:
    """Raise UserError where the device cannot compute in fp16."""
    for block, precision in (("train", config.train.precision), ("eval", config.eval.precision)):
        if precision == "fp16" and device.type != "cuda":
            raise UserError(
                f"{block}.precision: fp16 needs CUDA, and this run is on {device.type}; use {block}.precision=fp32 or bf16"
            )
