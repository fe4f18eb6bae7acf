"""COCO's 12 numbers of 5,000 images counted by faster_coco_eval, against pycocotools.

Both count the same made-up detections through dndetr's own code, from the arrays of a detector to the numbers, which must be
equal: to 1e-12, and None where the other is None. They share a process, so that neither has to be believed.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from compare import Contest, Functions, Row, main
from pycocotools.coco import COCO

from dndetr.training.evaluate import Finding, coco_metrics, coco_results, index

IMAGES, CLASSES, OBJECTS, LIKELY = 5000, 80, 7, 20


def counters(detections: int) -> Functions:
    """Each checks its numbers against those of the one that counted first."""
    scene, numbers = made_up(IMAGES, detections), {}
    return {name: partial(count, *scene, name, numbers) for name in ("faster_coco_eval", "pycocotools")}


def count(truth: COCO, findings: list[Finding], counter: str, numbers: dict[str, float | None]) -> None:
    """From arrays to numbers, as an evaluation does."""
    found = coco_metrics(truth, coco_results(findings, range(1, CLASSES + 1)), counter)
    first = numbers.setdefault("first", found)
    for name in first:
        same_gap = (found[name] is None) == (first[name] is None)
        if not same_gap or (found[name] is not None and abs(found[name] - first[name]) > 1e-12):
            raise AssertionError(f"{counter} counts {name} as {found[name]}, the other one as {first[name]}")


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


if __name__ == "__main__":
    sizes = {100: 6, 300: None}
    main(
        __doc__.partition("\n")[0],
        [
            Contest(
                [partial(counters, detections)],
                [Row(f"5,000 images x {detections} detections", "faster_coco_eval", "pycocotools", line)],
                rounds=3,
            )
            for detections, line in sizes.items()
        ],
    )
