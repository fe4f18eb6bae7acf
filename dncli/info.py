"""Parameters and multiply-adds of a preset, counted without memory or arithmetic, beside the paper's numbers.

The paper calls multiply-adds of one image "GFLOPs". They are counted as torch's FlopCounterMode does, halved: convolutions,
linear layers and attention, neither norms nor activations, sampling or losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Group
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.labels.embeddings import vector_length
from dndetr.models.backbone import WeightsError
from dndetr.models.denoising.noise import NoiseConfig, noise_targets
from dndetr.models.denoising.queries import Known
from dndetr.models.hosts import build_detector
from dndetr.models.structures import Images, Target
from dndetr.resolve import Resolved


@dataclass(frozen=True)
class Info:
    """Counts for one image of the given size with so many objects."""

    parameters: int
    trainable: int
    inference: float  # multiply-adds
    training: float  # forward and backward, without denoising
    denoising: float | None  # forward and backward, with denoising; None where the preset has none
    size: tuple[int, int]  # height and width
    classes: int
    objects: int


def info(resolved: Resolved | Config, height: int = 800, width: int = 1066, num_classes: int = 91, objects: int = 7) -> Info:
    """Count for one image of `height` x `width` pixels.

    91 classes are what the reference uses for COCO, 7 objects about what an image of COCO holds.
    """
    config = resolved.config if isinstance(resolved, Resolved) else resolved
    model = build(config, num_classes)
    images = Images(torch.empty(1, 3, height, width, device="meta"))
    return Info(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        inference=multiply_adds(model.eval(), images),
        training=multiply_adds(model.train(), images, Known(every_group=True), backward=True),
        denoising=multiply_adds(model, images, told(config.noise, num_classes, objects), backward=True)
        if config.noise
        else None,
        size=(height, width),
        classes=num_classes,
        objects=objects,
    )


def build(config: Config, num_classes: int) -> nn.Module:
    """The detector on the meta device: shapes without numbers."""
    try:
        with torch.device("meta"):
            file = config.labels.embeddings
            embeddings = None if file is None else torch.empty(num_classes, vector_length(file))
            return build_detector(config.host, config.backbone, num_classes, embeddings)
    except WeightsError as error:
        raise UserError(str(error)) from error


def told(noise: NoiseConfig, num_classes: int, objects: int) -> Known:
    """The denoising queries of an image with so many objects."""
    target = Target(torch.zeros(objects, dtype=torch.long), torch.full((objects, 4), 0.5))
    return Known(noise_targets([target], noise, num_classes, [torch.Generator()]).to("meta"), noise.isolated, every_group=True)


def multiply_adds(model: nn.Module, images: Images, known: Known | None = None, *, backward: bool = False) -> float:
    with FlopCounterMode(display=False) as counter:
        output = model(images, known)
        if backward:
            (output.logits.sum() + output.boxes.sum()).backward()
    return counter.get_total_flops() / 2


def report(resolved: Resolved, counted: Info) -> Group:
    """The counts beside the paper's row, and what exactly was counted."""
    paper = resolved.config.paper
    step = f"training step, {counted.objects} objects"
    rows = [
        ("parameters", f"{counted.parameters / 1e6:.2f} M", paper and paper.params_m and f"{paper.params_m:g} M"),
        ("of them trainable", f"{counted.trainable / 1e6:.2f} M", None),
        ("inference", giga(counted.inference), paper and paper.gflops and f"{paper.gflops:g} G"),
        (f"{step}, without denoising", giga(counted.training), None),
        (f"{step}, with denoising", giga(counted.denoising) if counted.denoising else "none", None),
    ]
    grid = Table("", "counted", "paper", box=None, padding=(0, 2, 0, 0))
    for label, value, printed in rows:
        grid.add_row(label, value, printed or "-")
    height, width = counted.size
    about = (
        f"Multiply-adds, which the paper calls GFLOPs, of one image of {height} x {width} with {counted.classes} classes: "
        "convolutions, linear layers and attention. A training step is forward and backward."
    )
    if paper:
        about += f" The paper ({paper.row}, {paper.where}: {paper.ap} AP) does not state its image size."
    return Group(grid, "", about)


def giga(count: float) -> str:
    return f"{count / 1e9:.2f} G"
