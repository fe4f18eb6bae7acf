"""A few validation images as the detector sees them, beside the ground truth."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from dndetr.data.boxes import inside
from dndetr.data.coco import Categories, Split
from dndetr.data.images import AS_SHOWN, Reading, read_image
from dndetr.draw import Mark, draw_marks, side_by_side

SHOWN = 8  # images
THRESHOLD = 0.3  # score from which a detection is drawn


def draw_samples(
    split: Split, truth: COCO, detections: Iterable[dict[str, Any]], folder: Path, reading: Reading = AS_SHOWN
) -> None:
    """Ground truth and detections of some images, evenly taken from the split, as `folder`/IMAGE_ID.jpg."""
    chosen = split.images[:: max(1, len(split.images) // SHOWN)][:SHOWN]
    found: dict[int, list[dict[str, Any]]] = {image.id: [] for image in chosen}
    for detection in detections:
        if detection["image_id"] in found and detection["score"] >= THRESHOLD:
            found[detection["image_id"]].append(detection)
    for image in chosen:
        picture = read_image(image.path, (image.width, image.height), reading)
        written = [annotation for annotation in truth.imgToAnns[image.id] if not annotation["iscrowd"]]
        seen = [(annotation, inside(annotation["bbox"], image.width, image.height)) for annotation in written]
        objects = [{**annotation, "bbox": box} for annotation, box in seen if box is not None]
        sheet = side_by_side(
            [
                ("ground truth", draw_marks(picture, marks(objects, split.categories))),
                (f"detected, score from {THRESHOLD}", draw_marks(picture, marks(found[image.id], split.categories))),
            ]
        )
        sheet.save(folder / f"{image.id:012d}.jpg", quality=92)


def marks(annotations: Iterable[dict[str, Any]], categories: Categories) -> list[Mark]:
    """What to draw for COCO annotations or results: names and, where there are any, scores; the best one on top."""
    drawn = []
    for annotation in sorted(annotations, key=lambda a: a.get("score", 1.0)):
        label = categories.labels[annotation["category_id"]]
        x, y, width, height = annotation["bbox"]
        score = f" {annotation['score']:.2f}" if "score" in annotation else ""
        drawn.append(Mark((x, y, x + width, y + height), label, categories.names[label] + score))
    return drawn
