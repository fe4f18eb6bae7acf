"""`dndetr predict`: detections in any images, drawn and as JSON; and the detector of a checkpoint as a function."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from dndetr.asking import PLAIN, Ask, Progressive
from dndetr.config import Config
from dndetr.console import UserError
from dndetr.data.augment import fixed_view
from dndetr.data.coco import Categories
from dndetr.data.images import read_header, read_image, reading_of
from dndetr.data.loader import collate
from dndetr.data.search import find_images
from dndetr.data.survey import Survey, glance
from dndetr.draw import Mark, draw_marks
from dndetr.files import replace_text, writable
from dndetr.fonts import undrawable
from dndetr.labels.embeddings import categories_in, for_categories
from dndetr.models.structures import Target
from dndetr.training.checkpoint import Checkpoint, load_checkpoint
from dndetr.training.commands import check_progressive, settings_of
from dndetr.training.distributed import choose_device
from dndetr.training.evaluate import detect
from dndetr.training.precision import check_precision, looking
from dndetr.training.prepare import categories_of, load_detector
from dndetr.training.report import Report

LONGEST_STEM = 240  # bytes of a name, which a number and .jpg make longer; file systems allow 255


def predict(
    ckpt: str | Path,
    paths: Sequence[str | Path],
    out: str | Path,
    threshold: float = 0.3,
    *,
    rounds: int = 0,
    sure: float = 0.1,
    embeddings: str | Path | None = None,
    trust: bool = False,
) -> list[dict[str, Any]]:
    """Find objects in images, and in folders and all below them, with a run's best epoch or a checkpoint file.

    In `rounds` of progressive inference (Sec. 5.7.2) the detector is told what it found with a score from `sure` on. With a
    file of `embeddings` it looks for every class that is named there, seen in training or not (zero-shot).

    `out`, a new or empty folder, receives a drawn picture of each image, at the place below it that the file has below the
    folder that was given, and predictions.json: of each file its size and its detections with a score from `threshold` on
    (box x1, y1, x2, y2 in pixels, name, category_id, score). Returns the same. Files that cannot be read are named in a
    UserError at the end, when all others are done.
    """
    out = Path(out)
    if os.path.exists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; give a new folder with --out")
    checkpoint = load_checkpoint(ckpt, trust=trust)
    if rounds:
        check_progressive(checkpoint)
    if embeddings is not None:
        checkpoint = for_categories(checkpoint, categories_in(embeddings), embeddings)
    found = find_images(paths)
    problems = found.problems
    if not found.places:
        raise UserError(*problems)
    predictor = predictor_of(checkpoint, ckpt)
    config, categories = predictor.config, predictor.categories
    ask = Progressive(rounds, sure, len(categories))
    predictions: list[dict[str, Any]] = []
    report, reading, glances = Report(), reading_of(config.data), []
    with writable(out, "give another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        for file, place in report.track(found.places.items(), "predicting"):
            try:
                picture = read_image(file, reading=reading)
                glances.append(glance(file, picture.size, read_header(file), picture))
            except UserError as error:
                problems += error.lines
                continue
            detections = predictor(picture, threshold, ask)
            size = {"width": picture.width, "height": picture.height}
            predictions.append({"file": str(file), **size, "detections": detections})
            (out / place.parent).mkdir(parents=True, exist_ok=True)
            draw(picture, detections, categories).save(free_name(out / place.parent, place.stem), quality=92)
        replace_text(out / "predictions.json", json.dumps(predictions, indent=1) + "\n")
    looked = Survey(len(glances), tuple(glances), reading)
    for line in (*found.lines(), *looked.lines(), *summary(predictions, threshold, out)):
        report.say(line)
    if problems:
        raise UserError(*problems)
    return predictions


def summary(predictions: Sequence[dict[str, Any]], threshold: float, out: Path) -> list[str]:
    """How much was found, after what of it cannot be drawn, if anything."""
    objects = sum(len(prediction["detections"]) for prediction in predictions)
    images = f"{len(predictions)} image{'' if len(predictions) == 1 else 's'}"
    names = undrawable({d["name"] for prediction in predictions for d in prediction["detections"]})
    found = f"{images}, {objects} objects with a score from {threshold}: {out / 'predictions.json'}"
    return [*filter(None, [names]), found]


@dataclass(frozen=True)
class Predictor:
    """A trained detector as a function: `predictor(picture)` are the objects in an RGB picture, best first."""

    model: nn.Module
    config: Config
    categories: Categories

    def __call__(self, picture: Image.Image, threshold: float = 0.3, ask: Ask = PLAIN) -> list[dict[str, Any]]:
        """Those with a score from `threshold` on: box (x1, y1, x2, y2 in pixels), name, category_id, score."""
        return find_objects(self.model, picture, self.config, self.categories, threshold, ask)


def load_predictor(ckpt: str | Path, *, trust: bool = False) -> Predictor:
    """The detector of a run's best epoch or of a checkpoint file; `trust` opens files that can run code."""
    return predictor_of(load_checkpoint(ckpt, trust=trust), ckpt)


def predictor_of(checkpoint: Checkpoint, source: str | Path) -> Predictor:
    """The detector of a checkpoint on whatever device there is."""
    config, device = settings_of(checkpoint, (), source), choose_device("auto")
    check_precision(config, device)
    return Predictor(load_detector(checkpoint, config, source, device), config, categories_of(checkpoint))


@torch.inference_mode()
def find_objects(
    model: nn.Module, picture: Image.Image, config: Config, categories: Categories, threshold: float, ask: Ask = PLAIN
) -> list[dict[str, Any]]:
    """Detections of one image, best first, clipped to it."""
    nothing = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    images, _ = collate([(fixed_view(picture, config.data), nothing)])
    device = next(model.parameters()).device
    answer = ask(looking(model, images, config.eval.precision, device), [nothing.to(device)])
    (found,) = detect(answer.output, [(picture.height, picture.width)], config.eval.top)
    edges = torch.tensor([picture.width, picture.height] * 2, device=found.boxes.device)
    boxes = found.boxes.clamp(min=0).minimum(edges)
    return [
        {
            "box": [round(v, 2) for v in box],
            "name": categories.names[label],
            "category_id": categories.ids[label],
            "score": round(score, 4),
        }
        for box, label, score in zip(boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        if score >= threshold
    ]


def draw(picture: Image.Image, detections: Sequence[dict[str, Any]], categories: Categories) -> Image.Image:
    """The picture with its detections, the best on top."""
    marks = [Mark(tuple(d["box"]), categories.labels[d["category_id"]], f"{d['name']} {d['score']:.2f}") for d in detections]
    return draw_marks(picture, marks[::-1])


def free_name(folder: Path, stem: str) -> Path:
    """STEM.jpg, or STEM-2.jpg where images of one name come from several folders."""
    stem = os.fsdecode(os.fsencode(stem)[:LONGEST_STEM])
    names = (folder / (f"{stem}.jpg" if i == 1 else f"{stem}-{i}.jpg") for i in range(1, 10**6))
    return next(name for name in names if not name.exists())
