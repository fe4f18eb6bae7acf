"""`dndetr analyze cost`: what denoising adds to a training step, counted and measured, beside Table 8."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import torch
from rich.table import Table

from dndetr.analysis.output import say, show, table
from dndetr.config import Config
from dndetr.data.coco import Categories
from dndetr.data.loader import Part
from dndetr.info import build, multiply_adds, told
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.denoising.queries import Known
from dndetr.models.structures import FieldErrors, Images, Target
from dndetr.resolve import load_preset
from dndetr.tasks import Detection
from dndetr.training.distributed import choose_device
from dndetr.training.learner import Learner
from dndetr.training.prepare import build_model
from dndetr.training.report import Report

CLASSES = 91  # what the reference uses for COCO
OBJECTS = 7  # an image, about what COCO has
GROUPS = (0, 1, 5, 10)
PAPER = (
    "The paper counts 94.4 G for DAB-DETR-R50 and 94.5 G for DN-DAB-DETR-R50 with 5 groups in training (Table 8; the text of "
    "Sec. 4.4 says 94.4 and 94.6), and measures 51.1 and 57.7 minutes an epoch on 8 A100 GPUs, 1.13 x. It states neither "
    "the image size nor the number of objects; its 94.4 G is what it gives for inference too, so that of a forward pass."
)


class Cost(NamedTuple):
    """What one preset costs."""

    name: str
    size: tuple[int, int]  # height and width of an image
    parameters: int
    inference: float  # multiply-adds of one image
    forward: dict[int, float | None]  # of a training step, by denoising groups; None where queries cannot be denoised
    training: dict[int, float | None]  # forward and backward
    seconds: tuple[float, float] | None  # medians of a step without and with denoising; None = not measured
    groups: int | None  # of the step with denoising; None = it has none


def analyze_cost(
    presets: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    steps: int = 5,
    size: tuple[int, int] | None = None,
    batch: int = 2,
) -> list[Cost]:
    """Print parameters, multiply-adds and, unless `steps` is 0, seconds of a training step of presets.

    `size` is the height and width of images, by default that of the preset's evaluation in 4:3; `overrides` hold for all
    presets. Seconds are medians of `steps` steps of `batch` images of each kind. Raises UserError.
    """
    configs = {name: load_preset(name, overrides).config for name in presets}
    costs = [cost_of(name, config, size or usual_size(config), steps, batch) for name, config in configs.items()]
    show("The cost of denoising", cost_table(costs))
    say(*notes(costs, batch, steps), PAPER)
    return costs


def cost_of(name: str, config: Config, size: tuple[int, int], steps: int, batch: int) -> Cost:
    model, images = build(config, CLASSES), Images(torch.empty(1, 3, *size, device="meta"))
    inference = multiply_adds(model.eval(), images)
    noises = {groups: with_groups(config, groups) for groups in GROUPS}
    forward: dict[int, float | None] = {}
    training: dict[int, float | None] = {}
    for groups, noise in noises.items():
        known = told(noise, CLASSES, OBJECTS) if noise else Known(every_group=True)
        possible = noise is not None or groups == 0
        forward[groups] = multiply_adds(model.train(), images, known) if possible else None
        training[groups] = multiply_adds(model, images, known, backward=True) if possible else None
    noise = config.noise or noises[NoiseConfig().groups]
    seconds = measure(config, noise, size, steps, batch, name) if steps and noise else None
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(name, size, parameters, inference, forward, training, seconds, noise.groups if noise else None)


def with_groups(config: Config, groups: int) -> NoiseConfig | None:
    """The preset's noise, or that of the paper, with so many groups; None for 0, or for queries that cannot be denoised."""
    if not groups:
        return None
    noise = replace(config.noise or NoiseConfig(), groups=groups)
    try:
        replace(config, noise=noise)
    except FieldErrors:
        return None
    return noise


def usual_size(config: Config) -> tuple[int, int]:
    """Height and width of a picture in 4:3 as an evaluation sees it."""
    height = config.data.eval_size
    return height, min(height * 4 // 3, config.data.max_size)


def measure(
    config: Config, noise: NoiseConfig, size: tuple[int, int], steps: int, batch: int, title: str
) -> tuple[float, float]:
    """Median seconds of a training step without and with denoising: one detector, alternately, after one step of each."""
    device = choose_device(config.train.device)
    torch.manual_seed(config.train.seed)
    model = build_model(config, Categories(tuple(range(CLASSES)), tuple(map(str, range(CLASSES)))), device)
    learner = Learner(config, model, device, steps_per_epoch=1000)
    tasks = [Detection(each, CLASSES, config.train.seed) for each in (None, noise)]
    part = made_up(batch, size)
    learner.model.train()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in Report().track(range(steps + 1), f"{title}, steps"):
        for task, measured in zip(tasks, seconds, strict=True):
            measured.append(timed(lambda task=task: learner.step([part], task), device))
    plain, denoised = (median(measured[1:]) for measured in seconds)
    return plain, denoised


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it."""
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def made_up(batch: int, size: tuple[int, int]) -> Part:
    """Random pixels, and boxes with sides of a fifth to a half of the image."""
    rng = torch.Generator().manual_seed(0)
    targets = []
    for image in range(batch):
        sides = 0.2 + 0.3 * torch.rand(OBJECTS, 2, generator=rng)
        centers = sides / 2 + (1 - sides) * torch.rand(OBJECTS, 2, generator=rng)
        labels = torch.randint(CLASSES, (OBJECTS,), generator=rng)
        targets.append(Target(labels, torch.cat((centers, sides), 1), image, size))
    return Images(torch.randn(batch, 3, *size, generator=rng)), targets


def cost_table(costs: Sequence[Cost]) -> Table:
    """What is counted and measured down, presets across."""
    shown = table("", *(cost.name for cost in costs))
    shown.add_row("image", *("{} x {}".format(*cost.size) for cost in costs))
    shown.add_row("parameters", *(f"{cost.parameters / 1e6:.2f} M" for cost in costs))
    shown.add_row("inference", *(giga(cost.inference) for cost in costs), end_section=True)
    for title, counts in (("forward", "forward"), ("forward, backward", "training")):
        for groups in GROUPS:
            row = (giga(getattr(cost, counts)[groups]) for cost in costs)
            shown.add_row(f"{title}, {groups} group{'' if groups == 1 else 's'}", *row, end_section=groups == GROUPS[-1])
    if any(cost.seconds for cost in costs):
        pairs = [cost.seconds for cost in costs]
        shown.add_row("step without denoising", *("-" if pair is None else f"{pair[0]:.3f} s" for pair in pairs))
        shown.add_row("step with denoising", *("-" if pair is None else f"{pair[1]:.3f} s" for pair in pairs))
        shown.add_row("ratio", *("-" if pair is None else f"{pair[1] / pair[0]:.2f} x" for pair in pairs), style="bold")
    return shown


def giga(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e9:.3f} G"


def notes(costs: Sequence[Cost], batch: int, steps: int) -> list[str]:
    """What was counted and how it was measured."""
    lines = [
        f"Multiply-adds, which the paper calls GFLOPs, of one image with {CLASSES} classes and {OBJECTS} objects: "
        "convolutions, linear layers and attention."
    ]
    if any(cost.seconds for cost in costs):
        groups = sorted({cost.groups for cost in costs if cost.seconds})
        lines.append(
            f"Seconds are medians of {steps} steps each with {batch} made-up images, alternately without and with "
            f"{' and '.join(map(str, groups))} groups, in one process; they depend on the machine, their ratio less."
        )
    for cost in costs:
        if cost.groups is None:
            lines.append(f"The queries of {cost.name} are points, which cannot be denoised.")
    return lines
