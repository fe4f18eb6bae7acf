"""`dndetr predict`: detections in any images, drawn and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
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
from dndetr.data.images import read_image, reading_of
from dndetr.data.loader import collate
from dndetr.draw import Mark, draw_marks
from dndetr.files import replace_text, writable
from dndetr.labels.embeddings import categories_in, for_categories
from dndetr.models.structures import Target
from dndetr.training.checkpoint import load_checkpoint
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
    """Find objects in images and folders of images with a run's best epoch or a checkpoint file.

    In `rounds` of progressive inference (Sec. 5.7.2) the detector is told what it found with a score from `sure` on. With a
    file of `embeddings` it looks for every class that is named there, seen in training or not (zero-shot).

    `out`, a new or empty folder, receives a drawn picture of each image and predictions.json: of each file its size and
    its detections with a score from `threshold` on (box x1, y1, x2, y2 in pixels, name, category_id, score). Returns the
    same. Files that cannot be read are named in a UserError at the end, when all others are done.
    """
    out = Path(out)
    if os.path.exists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; give a new folder with --out")
    checkpoint = load_checkpoint(ckpt, trust=trust)
    if rounds:
        check_progressive(checkpoint)
    if embeddings is not None:
        checkpoint = for_categories(checkpoint, categories_in(embeddings), embeddings)
    files, problems = find_images(paths)
    if not files:
        raise UserError(*problems)
    config, device = settings_of(checkpoint, (), ckpt), choose_device("auto")
    check_precision(config, device)
    model, categories = load_detector(checkpoint, config, ckpt, device), categories_of(checkpoint)
    ask = Progressive(rounds, sure, len(categories))
    predictions: list[dict[str, Any]] = []
    report = Report()
    with writable(out, "give another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        for file in report.track(files, "predicting"):
            try:
                picture = read_image(file, reading=reading_of(config.data))
            except UserError as error:
                problems += error.lines
                continue
            detections = find_objects(model, picture, config, categories, threshold, ask)
            size = {"width": picture.width, "height": picture.height}
            predictions.append({"file": str(file), **size, "detections": detections})
            draw(picture, detections, categories).save(free_name(out, file.stem), quality=92)
        replace_text(out / "predictions.json", json.dumps(predictions, indent=1) + "\n")
    found = sum(len(prediction["detections"]) for prediction in predictions)
    images = f"{len(predictions)} image{'' if len(predictions) == 1 else 's'}"
    report.say(f"{images}, {found} objects with a score from {threshold}: {out / 'predictions.json'}")
    if problems:
        raise UserError(*problems)
    return predictions


def find_images(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """The image files meant by files and folders, and what is wrong with the others."""
    files: list[Path] = []
    problems = []
    for path in map(Path, paths):
        folder = os.path.isdir(path)  # unlike Path's, it answers for names that no system allows
        try:
            found = sorted(images_in(path)) if folder else [path] if os.path.exists(path) else []
        except OSError as error:
            problems.append(f"{path}: cannot be listed: {error.strerror or error}")
            continue
        files += found
        if not found:
            problems.append(f"{path}: {'holds no images' if folder else 'no such file or folder'}")
    return list(dict.fromkeys(files)), problems


def images_in(folder: Path) -> Iterator[Path]:
    """Files that look like images by their names."""
    known = Image.registered_extensions()
    return (file for file in folder.iterdir() if file.suffix.lower() in known and file.is_file())


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
