"""The one tree of settings behind every preset, override and checkpoint.

Each block is a frozen dataclass beside what it configures: the host, backbone, noise, matching and losses in `models`, data
and training here. dncli/resolve.py reads YAML and overrides into this tree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator

from dndetr.models.backbone import BackboneConfig
from dndetr.models.criterion import LossConfig
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.hosts import HostConfig
from dndetr.models.labels import LabelsConfig
from dndetr.models.matcher import MatchConfig
from dndetr.models.native import Choice
from dndetr.models.structures import STRICT, FieldErrors, demand, positive

# Two numbers with a comma between them, as on a command line; a list of YAML will do.
Range = Annotated[str, BeforeValidator(lambda value: ",".join(map(str, value)) if isinstance(value, list) else value)]


@dataclass(frozen=True)
class DataConfig:
    """Where images and annotations lie and how they are brought to size."""

    root: str = "shapes"  # a folder or .zip in one of the layouts of docs/data.md, or `shapes`: the generated dataset
    train: str = ""  # instead of root: a COCO file of the training images
    val: str = ""  # and one of the validation images
    images: str = ""  # the folder or .zip of their images
    crowds: Literal["ignore", "objects"] = "ignore"  # objects: what is marked as a crowd (iscrowd) is an ordinary object
    holdout: float = 0.0  # share of the training images that are held out for validation, where the data have none for it
    workers: int = 2  # processes that read images; results do not depend on it
    sizes: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # shorter side while training
    eval_size: int = 800  # shorter side in evaluation and prediction
    max_size: int = 1333  # the longer side never exceeds it
    crop: bool = True  # DETR's random crop, in half of the training images
    flip: float = 0.5  # probability of a horizontal flip
    vertical_flip: float = 0.0  # for pictures without an up and down (cells, aerial views)
    exif: Literal["apply", "ignore"] = "apply"  # ignore: boxes are of the pictures as stored, before their EXIF rotation
    alpha: Literal["white", "drop"] = "white"  # transparent pixels are seen on white; drop: as if they were not transparent
    range: Range = "auto"  # MIN,MAX: seen as black and white in pictures that are not of 8 bits; auto: by training images

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        demand(
            self,
            workers=(self.workers >= 0, "0 or more"),
            sizes=(len(self.sizes) > 0 and min(self.sizes, default=0) > 0, "a list of lengths above 0"),
            eval_size=(self.eval_size > 0, "above 0"),
            max_size=(self.max_size >= max(self.eval_size, 1), f"at least eval_size ({self.eval_size})"),
            holdout=(0 <= self.holdout < 1, "from 0 to below 1"),
            root=(self.root == "shapes" or not (self.train or self.val), "left out where data.train or data.val name files"),
            images=(not self.images or bool(self.train or self.val), "given with data.train or data.val, whose images it has"),
            flip=(0 <= self.flip <= 1, "from 0 to 1"),
            vertical_flip=(0 <= self.vertical_flip <= 1, "from 0 to 1"),
            range=(self.range == "auto" or self.bounds is not None, "auto, or two numbers MIN,MAX such as 0,4095"),
        )

    @property
    def bounds(self) -> tuple[float, float] | None:
        """MIN and MAX of `range`, None where it has none."""
        try:
            low, high = map(float, self.range.split(","))
        except ValueError:
            return None
        return (low, high) if -math.inf < low < high < math.inf else None

    @property
    def named(self) -> str:
        """The data in a word."""
        return self.val or self.train or self.root


@dataclass(frozen=True)
class TaskConfig:
    """What the detector is told and what it has to find (Sec. 5.7.1)."""

    name: Literal["detection", "known_objects", "known_labels"] = "detection"
    classes: tuple[str, ...] = ()  # the classes to find, by name; objects of others are told or ignored; empty = all

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class TrainConfig:
    """The schedule (Sec. 5.1 by default)."""

    epochs: int = 50
    drop_epoch: float = 40.0  # after so many epochs the learning rate is multiplied by 0.1; fractions count steps
    lr: float = 1e-4
    backbone_lr: float = 1e-5
    weight_decay: float = 1e-4
    batch_size: int = 16  # images a step, over all processes and accumulated parts
    accumulate: int = 1  # parts in which a batch goes through the model
    warmup_steps: int = 0  # in which the rates rise from 0; at most a tenth of all steps
    clip: float = 0.1  # largest norm of the gradient, 0 = no clipping
    ema: float = 0.0  # decay a step of the averaged weights that are evaluated, less in the first steps; 0 = none
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    seed: int = 0
    save_steps: int = 1000  # steps between checkpoints within an epoch, 0 = at its end only
    keep_every: int = 0  # epochs between checkpoints that are kept for analysis as checkpoints/epoch_NNN.pt, 0 = none
    skip_nonfinite: int = 0  # steps of a run whose loss or gradient may be not finite; they change no weight
    timeout: float = 1800.0  # seconds that processes wait for one of them that does not answer

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        rest = ("drop_epoch", "backbone_lr", "weight_decay", "warmup_steps", "clip", "seed")
        rest += ("save_steps", "keep_every", "skip_nonfinite")
        demand(
            self,
            ema=(0 <= self.ema < 1, "from 0 to below 1"),
            accumulate=(
                self.accumulate > 0 and self.batch_size % self.accumulate == 0,
                f"a divisor of batch_size ({self.batch_size})",
            ),
            **positive(self, "epochs", "lr", "batch_size", "timeout"),
            **{name: (getattr(self, name) >= 0, "0 or more") for name in rest},
        )


@dataclass(frozen=True)
class EvalConfig:
    """How detections are made and counted."""

    batch_size: int = 8
    top: int = 300  # detections kept of an image, over queries x classes, as in DN-DETR
    detections: int = 100  # of a class in an image that are counted at most, COCO's 100; more for crowded images
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # fp32: a checkpoint has one AP, whatever it was trained in
    every: int = 1  # epochs between evaluations; the last epoch is always evaluated
    counter: Literal["pycocotools", "faster_coco_eval"] = "pycocotools"  # the same numbers; the second is several times faster

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        rules = positive(self, "batch_size", "top", "every")
        rules["detections"] = (10 < self.detections <= max(self.top, 100), f"above 10 and at most eval.top ({self.top})")
        demand(self, **rules)


@dataclass(frozen=True)
class PaperRow:
    """The row of the paper that a preset reproduces: numbers to compare with, without effect."""

    table: int
    row: str
    ap: float
    params_m: float | None = None
    gflops: float | None = None
    also: tuple[int, ...] = ()  # further tables that hold the row

    __pydantic_config__ = STRICT

    @property
    def where(self) -> str:
        """`Table 1`, or `Tables 1 and 7`."""
        tables = [str(table) for table in (self.table, *self.also)]
        return f"Table{'s' if self.also else ''} {' and '.join(tables)}"


@dataclass(frozen=True)
class Config:
    """One run."""

    host: HostConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    noise: NoiseConfig | None = field(default_factory=NoiseConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    op: Choice = "auto"  # deformable attention: native, torch, or native where it can be built
    paper: PaperRow | None = None

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        untold = self.host.untold
        if self.noise and untold:
            raise FieldErrors({"noise": f"must be null with {untold}, whose queries are no boxes"})
        if self.task.name != "detection" and untold:
            raise FieldErrors({"task.name": f"must be detection with {untold}, whose queries can be told nothing"})
        if self.backbone.dilation and getattr(self.host, "scales", 1) > 1:
            raise FieldErrors({"backbone.dilation": "must be false with several host.scales, each half as fine as the last"})
        if self.task.name == "known_objects" and not self.noise:
            raise FieldErrors({"noise": "must not be null with task.name: known_objects, which are told as noised queries"})
