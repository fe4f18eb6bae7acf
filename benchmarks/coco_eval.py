"""COCO's 12 numbers of 5,000 images counted by faster_coco_eval, against pycocotools.

    python benchmarks/coco_eval.py [DETECTIONS]

DETECTIONS of an image are 100 by default. Both count the same made-up detections through dndetr's own code, from the arrays
of a detector to the numbers. They take turns, A B A B ..., on one thread; what is compared are medians of CPU time.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # read when the libraries are loaded

import numpy as np
import torch
from pycocotools.coco import COCO

from dncli.training.evaluate import Finding, coco_metrics, coco_results, index

COUNTERS = ("faster_coco_eval", "pycocotools")
IMAGES, CLASSES, OBJECTS, LIKELY = 5000, 80, 7, 20
ROUNDS = 3


def main(detections: int = 100) -> None:
    torch.set_num_threads(1)
    truth, findings = made_up(IMAGES, detections)
    for counter in COUNTERS:
        count(*made_up(50, detections), counter)  # not timed: what is done once only, such as imports
    milliseconds, numbers = {counter: [] for counter in COUNTERS}, {}
    for _ in range(ROUNDS):
        for counter in COUNTERS:
            start = time.process_time()
            numbers[counter] = count(truth, findings, counter)
            milliseconds[counter].append(1000 * (time.process_time() - start))
    fast, slow = (statistics.median(milliseconds[counter]) for counter in COUNTERS)
    what = f"{IMAGES:,} images x {detections} detections"
    print(f"{'what':<34}{'faster_coco_eval ms':>21}{'pycocotools ms':>16}{'ratio':>8}  all 12 numbers equal")
    print(f"{what:<34}{fast:>21.0f}{slow:>16.0f}{slow / fast:>8.1f}  {equal(*numbers.values())}")


def count(truth: COCO, findings: list[Finding], counter: str) -> dict[str, float | None]:
    """From arrays to numbers, as an evaluation does."""
    return coco_metrics(truth, coco_results(findings, range(1, CLASSES + 1)), counter)


def made_up(images: int, detections: int) -> tuple[COCO, list[Finding]]:
    """Objects of all sizes and detections near them.

    An image's objects and detections are of LIKELY classes; half of the detections have the class of the object.
    """
    rng = np.random.default_rng(0)
    annotations, findings = [], []
    for image in range(1, images + 1):
        likely = rng.choice(CLASSES, LIKELY, replace=False)
        objects = rng.poisson(OBJECTS)
        size = np.exp(rng.uniform(np.log(8), np.log(400), (objects, 2)))
        corner = rng.uniform(0, 640 - size)
        labels = rng.choice(likely, objects)
        for box, label in zip(np.hstack((corner, size)).tolist(), labels.tolist(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": label + 1, "iscrowd": 0}
            annotations.append({**entry, "bbox": box, "area": box[2] * box[3]})
        found, guessed = rng.uniform(0, 640, (detections, 4)), rng.choice(likely, detections)
        if objects:
            near = rng.integers(objects, size=detections)
            shift = rng.normal(0, 0.1, (detections, 4)) * np.tile(size[near], 2)
            found = np.hstack((corner, corner + size))[near] + shift
            guessed = np.where(rng.random(detections) < 0.5, labels[near], guessed)
        boxes = np.hstack((np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:])))
        scores = np.sort(rng.random(detections, dtype=np.float32))[::-1]
        findings.append(Finding(image, boxes.astype(np.float32), guessed, scores, NONE, NONE))
    return index(
        {
            "images": [{"id": image, "width": 640, "height": 640} for image in range(1, images + 1)],
            "categories": [{"id": category, "name": str(category)} for category in range(1, CLASSES + 1)],
            "annotations": annotations,
        }
    ), findings


NONE = np.zeros(0)  # matches and distances, which counting does not ask for


def equal(ours: dict[str, float | None], theirs: dict[str, float | None]) -> str:
    """Whether they are, to the last bit or as close as floats come."""
    if ours == theirs:
        return "yes, to the last bit"
    known = [name for name in ours if None not in (ours[name], theirs[name])]
    furthest = max((abs(ours[name] - theirs[name]) for name in known), default=0.0)
    same_gaps = all((ours[name] is None) == (theirs[name] is None) for name in ours)
    return f"{'yes' if same_gaps and furthest <= 1e-12 else 'NO'}, they differ by up to {furthest:.0e}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
