"""A detector and targets small enough to be trained in a test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import nn

from dndetr.config import Config, DataConfig, EvalConfig, TrainConfig
from dndetr.models.backbone import BackboneConfig
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.hosts import build_detector
from dndetr.models.hosts.deformable_detr import DeformableDetrConfig
from dndetr.models.structures import Images, Target
from dndetr.resolve import Resolved, to_tree
from dndetr.training.checkpoint import Checkpoint

CLASSES = 3
CATEGORY_IDS = (2, 5, 7)

HOST = DeformableDetrConfig(
    decoder="deformable", anchors="grid", queries=9, levels=1, points=2, hidden=16, heads=2, ffn=16,
    encoder_layers=1, decoder_layers=2,
)  # fmt: skip


def tiny_config(root: str | Path = "nowhere", **train) -> Config:
    settings = {
        "epochs": 2,
        "drop_epoch": 1,
        "lr": 1e-3,
        "backbone_lr": 1e-3,
        "batch_size": 4,
        "device": "cpu",
        **train,
    }
    return Config(
        host=HOST,
        backbone=BackboneConfig("small", "none"),
        noise=NoiseConfig(groups=2),
        data=DataConfig(root=str(root), workers=0, sizes=(32, 40), eval_size=32, max_size=64, crop=False),
        train=TrainConfig(**settings),
        eval=EvalConfig(batch_size=4, top=20),
    )


def tiny_model(config: Config, classes: int = CLASSES, embeddings: torch.Tensor | None = None) -> nn.Module:
    torch.manual_seed(0)
    return build_detector(config.host, config.backbone, classes, embeddings)


def frozen_statistics(model: nn.Module) -> nn.Module:
    """Batch norm mixes the images of a batch; these statistics stay, so that parts of a batch add up exactly."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


def batch(counts: list[int], seed: int = 0) -> tuple[Images, list[Target]]:
    """Random images of 32 x 32 with so many objects each."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randn(len(counts), 3, 32, 32, generator=rng)
    targets = []
    for i, count in enumerate(counts):
        center = 0.3 + 0.4 * torch.rand(count, 2, generator=rng)
        size = 0.1 + 0.2 * torch.rand(count, 2, generator=rng)
        labels = torch.randint(0, CLASSES, (count,), generator=rng)
        targets.append(Target(labels, torch.cat((center, size), 1), image_id=100 * seed + i, size=(32, 32)))
    return Images(pixels), targets


def halves(images: Images, targets: list[Target], parts: int = 2) -> list[tuple[Images, list[Target]]]:
    """The same batch in equal parts."""
    size = len(targets) // parts
    cut = [slice(i * size, (i + 1) * size) for i in range(parts)]
    return [(Images(images.pixels[s]), targets[s]) for s in cut]


def with_train(config: Config, **train) -> Config:
    return replace(config, train=replace(config.train, **train))


def write_dataset(root: Path, train: int = 10, val: int = 6) -> Path:
    """A COCO dataset of coloured rectangles, with gaps in its ids, images without objects and a crowd."""
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir()
        rng = np.random.default_rng(len(split))
        images, annotations = [], []
        for i in range(count):
            pixels = rng.integers(0, 60, (32, 40, 3), dtype=np.uint8)
            image = {"id": 10 * i + 3, "file_name": f"{i}.png", "width": 40, "height": 32}
            for _ in range(i % 4):
                label, (x, y), (w, h) = (
                    int(rng.integers(3)),
                    rng.integers(0, 20, 2).tolist(),
                    rng.integers(6, 12, 2).tolist(),
                )
                pixels[y : y + h, x : x + w, label] = 220
                annotations.append(
                    {"id": len(annotations), "image_id": image["id"], "category_id": CATEGORY_IDS[label],
                     "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                )  # fmt: skip
            PIL.Image.fromarray(pixels).save(root / split / image["file_name"])
            images.append(image)
        crowd = {"id": 1000, "image_id": 3, "category_id": 7, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 1}
        categories = [{"id": c, "name": n} for c, n in zip(CATEGORY_IDS, ("red", "green", "blue"), strict=True)]
        content = {"images": images, "annotations": [*annotations, crowd], "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def resolved(config: Config) -> Resolved:
    return Resolved(config, {}, to_tree(config))


def checkpoint(epoch: int = 1, **other) -> Checkpoint:
    """The least that is a checkpoint."""
    values = dict(
        model={"w": torch.arange(3.0)}, ema=None, optimizer={}, scaler={}, epoch=epoch, step=5, steps_per_epoch=5, skipped=0,
        begun={}, best_ap=0.5, config={"train": {"lr": 1e-4}}, category_ids=[3], category_names=["x"],
        data={"train": "0", "val": "1"},
    )  # fmt: skip
    return Checkpoint(**{**values, **other})
