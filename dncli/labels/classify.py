"""A multi-label classifier on a detector's frozen backbone: which classes an image has (Sec. 5.7.2, before detection).

The backbone looks at each image once. Average and maximum of its last feature map are what a small head learns from, under
binary cross-entropy, class by class.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.data.coco import Split, load_split
from dndetr.data.layouts import find_dataset
from dndetr.data.loader import Batches, DetectionDataset, Part, eval_loader
from dndetr.files import replace_text, writable
from dndetr.models.structures import Feature
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.commands import settings_of
from dndetr.training.distributed import choose_device
from dndetr.training.prepare import categories_of, load_detector
from dndetr.training.report import Report

HIDDEN, DROPOUT = 256, 0.5
BATCH, RATE, DECAY = 64, 1e-3, 1e-2  # of AdamW
THRESHOLD = 0.5  # from this probability on a class counts as present


class Seen(NamedTuple):
    """What a split looks like to the head."""

    image_ids: list[int]
    features: Tensor  # (I, 2 D): average, maximum
    present: Tensor  # (I, C) bool, the classes that an image has


def classify(
    ckpt: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    epochs: int = 20,
    seed: int = 0,
    trust: bool = False,
) -> dict[str, Any]:
    """Train the head on the training split, and write what it says of each validation image to `out`, a new JSON file.

    That is {"classes": names, "images": {image id: probability of each class}, "about": ...}, with the mean average
    precision over classes and the share of images all of whose classes are right. Returns the same. `overrides` are those of
    an evaluation. Raises UserError.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: exists; give a new file with --out")
    checkpoint = load_checkpoint(ckpt, trust=trust)
    config, categories = settings_of(checkpoint, overrides, ckpt), categories_of(checkpoint)
    device, report = choose_device(config.train.device), Report()
    backbone = load_detector(checkpoint, config, ckpt, device).backbone
    dataset = find_dataset(config.data, config.train.seed)
    splits = [load_split(dataset, name, categories) for name in ("train", "val")]
    seen = [see(backbone, batches(split, config), len(categories), report, split.name) for split in splits]
    train, val = standardised(*seen)
    head = train_head(train, epochs=epochs, seed=seed)
    with torch.inference_mode():
        probabilities = head(val.features).sigmoid()
    precisions = average_precisions(probabilities, val.present)
    about = {
        "checkpoint": str(ckpt), "epoch": checkpoint.epoch, "data": config.data.named, "epochs": epochs, "seed": seed,
        "map": mean(precisions), "exact": exact_share(probabilities, val.present),
        "average_precision": dict(zip(categories.names, precisions, strict=True)),
    }  # fmt: skip
    images = zip(map(str, val.image_ids), probabilities.double().round(decimals=4).tolist(), strict=True)
    found = {"classes": list(categories.names), "images": dict(images), "about": about}
    write(out, found)
    report.say(summary(about, len(val.image_ids), out))
    return found


def batches(split: Split, config: Config) -> Batches:
    """Each image of a split once, as in an evaluation."""
    dataset = DetectionDataset(split, config.data, config.train.seed, train=False)
    return eval_loader(dataset, batch_size=config.eval.batch_size, workers=config.data.workers)


@torch.inference_mode()
def see(backbone: nn.Module, parts: Iterable[Part], num_classes: int, report: Report, name: str) -> Seen:
    """The pooled features and the classes of every image."""
    device = next(backbone.parameters()).device
    ids, features, present = [], [], []
    for images, targets in report.track(parts, f"looking at {name} images"):
        features.append(pooled(backbone(images.to(device))[-1]).cpu())
        for target in targets:
            ids.append(target.image_id)
            present.append(F.one_hot(target.labels, num_classes).sum(0) > 0)
    return Seen(ids, torch.cat(features), torch.stack(present))


def pooled(feature: Feature) -> Tensor:
    """Average and maximum over what is no padding: (B, 2 D)."""
    x, padding = feature
    hidden = torch.zeros_like(x[:, 0], dtype=torch.bool) if padding is None else padding
    hidden = hidden[:, None]  # B 1 h w
    average = x.masked_fill(hidden, 0).sum((2, 3)) / (~hidden).sum((2, 3))
    return torch.cat((average, x.masked_fill(hidden, float("-inf")).amax((2, 3))), dim=1).float()


def standardised(train: Seen, val: Seen) -> tuple[Seen, Seen]:
    """Features of mean 0 and deviation 1 over the training images; those that never change become 0."""
    mean, deviation = train.features.mean(0), train.features.std(0, correction=0).clamp(min=1e-6)
    return tuple(seen._replace(features=(seen.features - mean) / deviation) for seen in (train, val))


def train_head(seen: Seen, *, epochs: int, seed: int) -> nn.Module:
    """Features (I, 2 D) to logits (I, C), trained on the CPU with a rate that falls to 0 along a cosine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width, classes = seen.features.shape[1], seen.present.shape[1]
        head = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, classes))
        optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        wanted = seen.present.float()
        for _ in range(epochs):
            for rows in torch.randperm(len(wanted)).split(BATCH):
                loss = F.binary_cross_entropy_with_logits(head(seen.features[rows]), wanted[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
    return head.eval()


def average_precisions(probabilities: Tensor, present: Tensor) -> list[float | None]:
    """Of each class the mean, over images that have it, of the precision down to that image; None where no image has it."""
    order = probabilities.argsort(dim=0, descending=True, stable=True)  # I C
    hits = present.gather(0, order).double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, dtype=torch.float64)[:, None]
    totals = hits.sum(0)
    return [ap if n else None for ap, n in zip(((precision * hits).sum(0) / totals).tolist(), totals.tolist(), strict=True)]


def exact_share(probabilities: Tensor, present: Tensor) -> float:
    """The share of images for which every class is right."""
    return ((probabilities >= THRESHOLD) == present).all(1).double().mean().item()


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summary(about: dict[str, Any], images: int, out: Path) -> str:
    score = "-" if about["map"] is None else f"{about['map']:.3f}"
    return f"{images} validation images: mAP {score}, every class right in {about['exact']:.1%} of them: {out}"


def write(out: Path, found: dict[str, Any]) -> None:
    with writable(out, "give another file with --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_text(out, json.dumps(found) + "\n")
