"""Formats with a file an image, which names the classes of its objects: what VOC and LabelMe share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations, shown
from dndetr.data.formats.reading import Box, say_bare, start_images, take_classes, take_object
from dndetr.data.store import Place, is_file


class Shape(NamedTuple):
    """One object as a file of its image tells it."""

    place: str
    name: str
    corners: Box | None  # x0, y0, x1, y1 in pixels; None where it has no extent
    ignore: bool = False


class Page(NamedTuple):
    """What a file tells of its image."""

    size: tuple[int, int] | None
    shapes: list[Shape]


def take_pages(
    found: Annotations,
    images: Sequence[str],
    file_of: Callable[[str], str],
    page_of: Callable[[Annotations, Place], Page],
    classes: Sequence[str],
    beside: Sequence[str],
    what: str,
) -> None:
    """Images with a file each, called `what`. Without `classes` these are the names that appear in it or in the files of
    `beside`, the images of the other split, in the alphabet's order.
    """

    def read(names: Sequence[str], found: Annotations) -> dict[str, Page]:
        there = [name for name in names if is_file(found.store, file_of(name))]
        return {name: page_of(found, found.store.place(file_of(name))) for name in there}

    pages = read(images, found)
    if not classes:
        others = read(beside, Annotations(found.file, found.store))  # what is wrong with them is said of their split
        shapes = [shape for page in (*pages.values(), *others.values()) for shape in page.shapes]
        classes = sorted({shape.name for shape in shapes if shape.corners is not None})
    number_of = take_classes(found, classes)
    passed_over = 0
    for name, image in start_images(found, images, {name: page.size for name, page in pages.items()}):
        found.reading = found.store.place(file_of(name))
        for shape in pages[name].shapes if name in pages else ():
            if shape.corners is None:
                passed_over += 1
            elif shape.name not in number_of:
                found.add(kinds.UNKNOWN_CATEGORY, f"{shape.place}: {shown(shape.name)} is none of the classes", image.id)
            else:
                take_object(found, image.id, number_of[shape.name], shape.corners, shape.place, ignore=shape.ignore)
    found.reading = None
    if passed_over:
        found.remarks.append(f"points and lines are no objects here: {passed_over} shapes passed over")
    say_bare(found, len(images) - len(pages), what)
