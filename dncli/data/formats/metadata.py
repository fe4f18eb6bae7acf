"""Hugging Face's imagefolder: metadata.jsonl, a line of JSON an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from dndetr.console import in_one_line
from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations, shown
from dndetr.data.formats.reading import lines_of, start_images, take_object
from dndetr.data.formats.source import Source, Sources, all_but, folders_with
from dndetr.data.store import Place, Store, is_file, join


def metadata(store: Store) -> Sources:
    """Hugging Face's imagefolder."""
    folders = folders_with(store, "metadata.jsonl", lambda folder: is_file(store, join(folder, "metadata.jsonl")))
    folders = folders or ({"train": ""} if is_file(store, "metadata.jsonl") else {})
    files = {split: [join(folder, "metadata.jsonl")] for split, folder in folders.items()}
    return {
        split: Source(
            "metadata.jsonl", *files[split], store, partial(read_metadata, folder=folder, beside=all_but(split, files))
        )
        for split, folder in folders.items()
    }


def read_metadata(found: Annotations, folder: str, beside: Sequence[str] = ()) -> None:
    """A line of JSON an image, with `file_name` and `objects`: lists `bbox` (as COCO's) and `categories` or `category`.

    Classes are numbers there; where they are names, these are taken, of the files `beside` of the other split too.
    """
    rows = rows_of(found, found.file)
    others = Annotations(found.file, found.store)  # what is wrong with them is said of their split
    every = [*rows, *(row for name in beside for row in rows_of(others, found.store.place(name)))]
    classes = {value for _, _, listed in every for _, value in listed if isinstance(value, (int, str))}
    number_of = {name: name if isinstance(name, int) else i for i, name in enumerate(sorted(classes, key=str), start=1)}
    for value, number in sorted(number_of.items(), key=lambda pair: pair[1]):
        found.take("categories", {"id": number, "name": str(value)}, "categories")
    images = {join(folder, name): (number, listed) for number, name, listed in rows}
    for name, image in start_images(found, list(images)):
        number, listed = images[name]
        for i, (box, value) in enumerate(listed):
            place = f"line {number}, object {i}"
            if kinds.is_box(box) and value in number_of:
                x, y, width, height = box
                take_object(found, image.id, number_of[value], (x, y, x + width, y + height), place)
            else:
                told = f"{place}: must be a bbox [x, y, width, height] and a category, got {shown([box, value])}"
                found.add(kinds.WRONG_TYPE, told, image.id)


def rows_of(found: Annotations, place: Place) -> list[tuple[int, str, list[tuple[Any, Any]]]]:
    """Of each line its number, the name of the image, and pairs of a box and a class."""
    rows = []
    for number, line in enumerate(lines_of(found, place), start=1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                objects = row.get("objects") or {}
                classes = objects.get("categories", objects.get("category", []))
                rows.append((number, str(row["file_name"]), list(zip(objects.get("bbox", []), classes, strict=True))))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = f"line {number}: must be JSON with file_name and objects ({in_one_line(error)})"
            found.add(kinds.MALFORMED, told)
    return rows
