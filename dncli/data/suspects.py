"""What is well-formed and yet looks wrong: numbers of another convention, and objects that are there twice."""

from __future__ import annotations

import numpy as np

from dndetr.data.annotations import CORNERS, NORMALISED, REPEATED, Annotations, Object
from dndetr.data.boxes import SLACK

# IoU from which two boxes of one class are taken for one object. Of 6,000 real ones (blood cells, photographs of COCO's) seven
# pairs have more, each an object and its copy two pixels further; of the others none has more than 0.84.
SAME = 0.9
ENOUGH = 3  # boxes that must speak for another convention


def find_suspects(found: Annotations) -> None:
    """Note what the boxes of a split look like, once each, and every object that seems to be annotated twice."""
    if not found.objects:
        return
    boxes = np.array([item.box for item in found.objects], dtype=np.float64)
    images = [found.images[item.image_id] for item in found.objects]
    sizes = np.array([(image.width, image.height) for image in images], dtype=np.float64)
    example = list(found.objects[0].box)
    if looks_normalised(boxes, sizes):
        found.add(
            NORMALISED,
            f"all {len(boxes)} boxes lie between 0 and 1, as {example}: they look like shares of the image, and COCO's are "
            "x, y, width, height in pixels; multiply them by the sizes of the images",
        )
    elif outside := look_like_corners(boxes, sizes):
        found.add(
            CORNERS,
            f"{outside} of {len(boxes)} boxes leave their image as x, y, width, height, and none does as x1, y1, x2, y2: bbox "
            f"seems to hold corners, as {example}; write [x1, y1, x2 - x1, y2 - y1]",
        )
    for first, second in repeated(found.objects, boxes):
        told = f"bbox {list(second.box)} is that of annotation {first.id} of the same class, or nearly: annotated twice?"
        found.add(REPEATED, told, second.image_id, second.id)


def looks_normalised(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether all boxes, (K, 4), lie between 0 and 1 in images, (K, 2), that are larger. Whole numbers may be pixels."""
    return bool((boxes >= 0).all() and (boxes <= 1).all() and (sizes > 2).all() and (boxes != boxes.round()).any())


def look_like_corners(boxes: np.ndarray, sizes: np.ndarray) -> int:
    """How many boxes leave their image, if that is most of them and all are sound as x1, y1, x2, y2; else 0."""
    first, second = boxes[:, :2], boxes[:, 2:]
    with np.errstate(over="ignore"):
        outside = int((first + second > sizes + SLACK).any(1).sum())
    sound = (first >= -SLACK).all() and (second > first).all() and (second <= sizes + SLACK).all()
    return outside if sound and outside >= ENOUGH and 2 * outside > len(boxes) else 0


def repeated(objects: list[Object], boxes: np.ndarray) -> list[tuple[Object, Object]]:
    """Pairs of objects of one class in one image with an IoU from SAME on; of several alike each but the first is told once.

    Crowds are left out. Sorted by image, class and left edge, a box is compared with the next ones only while their left
    edges are near enough for such an IoU.
    """
    kept = np.array([i for i, item in enumerate(objects) if not item.crowd and min(item.box[2:]) > 0], dtype=np.int64)
    keys = np.array([(objects[i].image_id, objects[i].category_id) for i in kept], dtype=np.int64).reshape(-1, 2)
    order = np.lexsort((boxes[kept, 0], keys[:, 1], keys[:, 0]))
    kept, keys, boxes = kept[order], keys[order], boxes[kept[order]]
    second: dict[int, int] = {}
    here, step = np.arange(len(kept)), 0
    while True:
        step += 1
        here = here[here + step < len(kept)]
        there = here + step
        near = boxes[there, 0] - boxes[here, 0] <= (1 - SAME) * boxes[here, 2]
        here = here[(keys[here] == keys[there]).all(1) & near]
        if not len(here):
            break
        for i in here[overlap(boxes[here], boxes[here + step]) >= SAME]:
            a, b = sorted((int(kept[i]), int(kept[i + step])))
            second.setdefault(b, a)
    return [(objects[a], objects[b]) for b, a in sorted(second.items())]


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of pairs of boxes x, y, width, height, (K, 4) each."""
    with np.errstate(over="ignore", invalid="ignore"):
        sides = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
        shared = sides.clip(min=0).prod(1)
        return shared / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared)
