"""LabelMe: a .json beside each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath

from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations, shown
from dndetr.data.formats.pages import Page, Shape, take_pages
from dndetr.data.formats.reading import Box, json_of
from dndetr.data.formats.source import Source, Sources, all_but, folders_with, lines_in, pictures_below
from dndetr.data.images import is_picture
from dndetr.data.store import Place, Store, is_file, join


def labelme(store: Store) -> Sources:
    """A .json beside each image; classes in the order of labels.txt, if that is there."""
    folders = folders_with(store, "LabelMe files", partial(has_labelme, store)) or (
        {"train": ""} if has_labelme(store, "") else {}
    )
    classes = []
    if is_file(store, "labels.txt"):
        classes = [name for name in lines_in(store, "labels.txt") if not name.startswith("_")]  # __ignore__, _background_
    images = {split: pictures_below(store, folder) for split, folder in folders.items()}
    return {
        split: Source(
            "LabelMe",
            folder,
            store,
            partial(read_labelme, images=images[split], classes=classes, beside=all_but(split, images)),
        )
        for split, folder in folders.items()
    }


def has_labelme(store: Store, folder: str) -> bool:
    """Whether the first .json that has the name of an image beside it holds shapes."""
    names = store.listing(folder)
    stems = {PurePosixPath(name).stem for name in names if is_picture(name)}
    first = next((n for n in sorted(names) if n.endswith(".json") and n[: -len(".json")] in stems), None)
    return (
        first is not None
        and is_file(store, join(folder, first))
        and b'"shapes"' in store.place(join(folder, first)).read_bytes()
    )


def read_labelme(found: Annotations, images: Sequence[str], classes: Sequence[str], beside: Sequence[str] = ()) -> None:
    """LabelMe: a .json beside each image; every shape is a box, the extent of its points.

    Of a circle, told by its centre and a point on it, that is the square around it. Points and lines are no objects.
    """
    take_pages(found, images, json_beside, labelme_page, classes, beside, ".json")


def json_beside(image: str) -> str:
    return str(PurePosixPath(image).with_suffix(".json"))


def labelme_page(found: Annotations, place: Place) -> Page:
    content = json_of(found, place)
    if content is None:
        return Page(None, [])
    listed = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        found.add(kinds.MALFORMED, 'is not LabelMe: it must hold an object with a list "shapes"')
        return Page(None, [])
    shapes = []
    for i, shape in enumerate(listed):
        points = shape.get("points") if isinstance(shape, dict) else None
        if not isinstance(points, list) or not points or not isinstance(shape.get("label"), str):
            found.add(kinds.WRONG_TYPE, f'shapes[{i}] must have a "label" and "points", got {shown(shape)}')
        elif not all(isinstance(p, list) and len(p) == 2 and all(map(kinds.is_number, p)) for p in points):
            found.add(kinds.WRONG_TYPE, f"shapes[{i}]: points must be [x, y], got {shown(points)}")
        else:
            shapes.append(Shape(f"shapes[{i}]", shape["label"], corners_of(points, shape.get("shape_type", "polygon"))))
    width, height = content.get("imageWidth"), content.get("imageHeight")
    known = kinds.is_length(width) and kinds.is_length(height)
    return Page((int(width), int(height)) if known else None, shapes)


def corners_of(points: Sequence[Sequence[float]], kind: str) -> Box | None:
    """The extent of a shape, None for what has none."""
    if kind in ("point", "points", "line", "linestrip"):
        return None
    if kind == "circle" and len(points) == 2:
        (x, y), (a, b) = points
        r = math.hypot(a - x, b - y)
        return x - r, y - r, x + r, y + r
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
