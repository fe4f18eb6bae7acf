"""What a training or an evaluation begins with: the data and the detector."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from pycocotools.coco import COCO
from torch import nn

from dndetr.config import Config
from dndetr.console import UserError, shorten
from dndetr.data.coco import Categories, Split, load_split
from dndetr.data.images import reading_of
from dndetr.data.layouts import Dataset, find_dataset, resolve_root
from dndetr.data.loader import Batches, DetectionDataset, TrainLoader, eval_loader, train_loader
from dndetr.data.remarks import by_split
from dndetr.data.survey import Survey, as_text, survey
from dndetr.labels.embeddings import class_embeddings
from dndetr.models import native
from dndetr.models.backbone import WeightsError, load_pretrained
from dndetr.models.deformable import DeformableAttention
from dndetr.models.hosts import build_detector
from dndetr.tasks import labels_of
from dndetr.training import distributed
from dndetr.training.checkpoint import Checkpoint, categories_of, for_classes, load_checkpoint, load_weights
from dndetr.training.evaluate import ground_truth


@dataclass(frozen=True)
class Validation:
    """The validation images: this process's share in batches, and the ground truth of all."""

    split: Split
    batches: Batches
    found: frozenset[int] | None = None  # the classes that are to be found, None = all

    @cached_property
    def truth(self) -> COCO:
        return ground_truth(self.split, self.found)


@dataclass(frozen=True)
class Data:
    """Both splits of a run, as this process sees them."""

    train: Split
    batches: TrainLoader
    validation: Validation
    dataset: Dataset
    pictures: Survey  # of the training images

    @property
    def categories(self) -> Categories:
        return self.train.categories

    @property
    def remarks(self) -> list[str]:
        """What was assumed of the data, mended or looks wrong, once where both splits say it."""
        return by_split({split.name: (*split.remarks, *split.mended) for split in (self.train, self.validation.split)})

    @property
    def digests(self) -> dict[str, str]:
        """What tells these annotations from others."""
        return {"train": self.train.digest, "val": self.validation.split.digest}


def anchored(config: Config) -> Config:
    """The settings with absolute paths to the data, which hold in whatever folder a run is gone on with."""
    names = [name for name in ("root", "train", "val", "images") if getattr(config.data, name) not in ("", "shapes")]
    paths = {name: os.path.abspath(os.path.expanduser(getattr(config.data, name))) for name in names}
    return replace(config, data=replace(config.data, **paths))


def load_data(config: Config, known: Categories | None = None, *, settle: bool = True) -> Data:
    """Read both splits; the validation split has the categories of the training split.

    `known` are those of a run to go on with: where they have all that the data have, they are the categories. With `settle`
    data.range=auto becomes what the training images show, see `settled`, for both splits.
    """
    if not (config.data.train or config.data.val):
        distributed.on_main(lambda: resolve_root(config.data.root))  # which makes `shapes`, once

    def read() -> Data:
        dataset = find_dataset(config.data, config.train.seed)
        train = load_split(dataset, "train")
        if known is not None and known.cover(train.categories):
            train = train.among(known)
        pictures = survey(train.images, reading_of(config.data), settle=settle)
        data = settled(config, pictures).data
        batches = train_loader(
            DetectionDataset(train, data, config.train.seed, train=True),
            batch_size=config.train.batch_size,
            accumulate=config.train.accumulate,
            rank=distributed.rank(),
            world=distributed.world(),
            workers=config.data.workers,
            seed=config.train.seed,
        )
        validation = load_validation(replace(config, data=data), train.categories, dataset)
        return Data(train, batches, validation, dataset, pictures)

    return distributed.together(read)


def settled(config: Config, pictures: Survey) -> Config:
    """The settings with what these pictures show for data.range=auto, so that by them all others are read alike."""
    if config.data.range != "auto" or pictures.reading.range is None:
        return config
    return replace(config, data=replace(config.data, range=",".join(map(as_text, pictures.reading.range))))


def load_validation(config: Config, categories: Categories, dataset: Dataset | None = None) -> Validation:
    """The validation split of `dataset`, by default the one of the settings, with the categories that the detector knows."""
    split = load_split(dataset or find_dataset(config.data, config.train.seed), "val", categories)
    batches = eval_loader(
        DetectionDataset(split, config.data, config.train.seed, train=False),
        batch_size=config.eval.batch_size,
        rank=distributed.rank(),
        world=distributed.world(),
        workers=config.data.workers,
    )
    return Validation(split, batches, labels_of(config, categories))


def build_model(
    config: Config, categories: Categories, device: torch.device, checkpoint: Checkpoint | None = None
) -> nn.Module:
    """The configured detector with random weights, on the CPU still; the operator that it needs on `device` is at hand.

    Embeddings of classes, where it has any, are those in `checkpoint`, for a new detector those of labels.embeddings.
    """
    native.choose(config.op)
    embeddings = class_embeddings(config, categories.names, checkpoint)
    try:
        model = build_detector(config.host, config.backbone, len(categories), embeddings)
        if samples(model):
            native.ready(device.type)
    except (WeightsError, native.OperatorError) as error:
        raise UserError(str(error)) from error
    return model


def samples(model: nn.Module) -> bool:
    """Whether there is deformable attention in it, the work of the operator."""
    return any(isinstance(module, DeformableAttention) for module in model.modules())


def begin(
    model: nn.Module, config: Config, categories: Categories, init_from: str | Path | None, *, trust: bool = False
) -> str:
    """Give a new detector the weights that a training begins with, and say in a few words which."""
    if init_from is None:
        distributed.on_main(lambda: fetch_weights(model, config))  # other processes get a copy when they join
        source = {"none": "", "default": ", the backbone's from ImageNet"}
        return "random" + source.get(config.backbone.weights, f", the backbone's from {config.backbone.weights}")

    def load() -> str:
        checkpoint = load_checkpoint(init_from, trust=trust)
        kept = categories.shared(categories_of(checkpoint))
        new = [name for label, name in enumerate(categories.names) if label not in kept]
        load_weights(model, for_classes(checkpoint, categories, model.state_dict()), init_from)
        return f"{init_from}, epoch {checkpoint.epoch}" + (f"; new classes begin at random: {shorten(new)}" if new else "")

    return distributed.together(load)


def fetch_weights(model: nn.Module, config: Config) -> None:
    try:
        load_pretrained(model.backbone, config.backbone)
    except WeightsError as error:
        raise UserError(str(error)) from error


def load_detector(checkpoint: Checkpoint, config: Config, source: str | Path, device: torch.device) -> nn.Module:
    """The detector of a checkpoint, ready to predict on `device`."""
    model = build_model(config, categories_of(checkpoint), device, checkpoint)
    load_weights(model, checkpoint.weights, source)
    return model.to(device).eval()
