"""What readers share: files to entries, with their places, and numbers for what a format does not number.

Images are numbered from 1 in the order of their names, annotations from 1, categories from 1 in the order of the format's own
list of classes, or by name.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from dndetr.console import in_one_line
from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations, leads_out, shown
from dndetr.data.images import size_of
from dndetr.data.locate import find_images
from dndetr.data.store import Place

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def start_images(
    found: Annotations, names: Sequence[str], sizes: Mapping[str, tuple[int, int] | None] | None = None
) -> Iterator[tuple[str, kinds.Image]]:
    """Number the image files `names` of the store from 1, and yield each; a size that is not told is read from the file."""
    for identity, name in enumerate(names, start=1):
        found.reading = None
        found.hash.update(f"\n{PurePosixPath(name).name}\n".encode("utf-8", "surrogateescape"))
        if leads_out(name):
            found.listed["images"].add(identity)
            found.add(kinds.BAD_PATH, f"{shown(name)} leads out of the data; put the file itself there", identity)
            continue
        size = (sizes or {}).get(name) or size_of(found.store.place(name), found.exif)
        if isinstance(size, str):
            found.listed["images"].add(identity)
            found.add(kinds.UNREADABLE, size, identity)
            continue
        found.take("images", {"id": identity, "file_name": name, "width": size[0], "height": size[1]}, name)
        if identity in found.images:
            image = found.images[identity] = replace(found.images[identity], file_name=name)
            yield name, image
    find_images(found, "")


def take_object(found: Annotations, image_id: int, category: int, corners: Box, place: str, *, ignore: bool = False) -> None:
    """An object by the corners of its box, in pixels."""
    identity, (x0, y0, x1, y1) = len(found.listed["annotations"]) + 1, corners
    entry = {"id": identity, "image_id": image_id, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}
    found.take("annotations", entry | ({"ignore": 1} if ignore else {}), place)


def take_classes(found: Annotations, names: Iterable[str]) -> dict[str, int]:
    """Number the classes from 1; returns the number of each name."""
    numbers = {name: number for number, name in enumerate(names, start=1)}
    for name, number in numbers.items():
        found.take("categories", {"id": number, "name": name}, "classes")
    return numbers


def say_bare(found: Annotations, images: int, what: str) -> None:
    if images:
        count = "1 image has" if images == 1 else f"{images} images have"
        found.remarks.append(f"{count} no {what}, and count as without objects")


def bytes_of(found: Annotations, place: Place) -> bytes | None:
    """A file, which becomes part of the digest."""
    found.reading = place if place is not found.file else None
    try:
        if isinstance(place, Path) and os.path.exists(place) and not os.path.isfile(place):  # a pipe would be waited for
            raise OSError("it is not a regular file")
        raw = place.read_bytes()
    except OSError as error:
        found.add(kinds.MALFORMED, f"cannot be read: {error.strerror or error}")
        return None
    found.hash.update(raw)
    return raw


def lines_of(found: Annotations, place: Place) -> list[str]:
    raw = bytes_of(found, place)
    try:
        return [] if raw is None else raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        found.add(kinds.MALFORMED, not_text(error))
        return []


def not_text(error: UnicodeDecodeError) -> str:
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"line {line}: not text: byte {error.object[error.start]:#04x}; save the file as UTF-8"


def json_of(found: Annotations, place: Place) -> Any:
    """The content of a JSON file, None where it has none."""
    raw = bytes_of(found, place)
    if raw is None:
        return None
    try:
        return json.loads(raw, object_pairs_hook=unrepeated)
    except json.JSONDecodeError as error:
        found.add(
            kinds.MALFORMED, f"line {error.lineno}, column {error.colno}: malformed JSON: {error.msg}; export the file again"
        )
    except UnicodeDecodeError as error:
        found.add(kinds.MALFORMED, not_text(error))
    except (ValueError, RecursionError, MemoryError) as error:
        reason = {RecursionError: "nested too deeply", MemoryError: "too large for the memory"}.get(type(error), error)
        found.add(kinds.MALFORMED, f"cannot be read: {reason}")
    return None


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The keys and values of a JSON object; Python would silently take the last one of equal keys."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        seen = Counter(key for key, _ in pairs)
        key = next(key for key, times in seen.items() if times > 1)
        where = f" of the object with id {shown(entry['id'])}" if "id" in entry else ""
        raise ValueError(f"the key {shown(key)}{where} appears twice; keep one of them")
    return entry


def xml_of(found: Annotations, place: Place) -> ElementTree.Element | None:
    raw = bytes_of(found, place)
    if raw is None:
        return None
    try:
        if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:  # entities can grow without end, and no such file needs them
            raise ElementTree.ParseError("it declares entities")
        return ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError) as error:
        found.add(kinds.MALFORMED, f"malformed XML: {in_one_line(error)}; export the file again")
        return None


def text_of(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def numbers_of(element: ElementTree.Element | None, *names: str) -> list[float] | None:
    try:
        values = [float(element.findtext(name)) for name in names] if element is not None else [math.nan]
    except (TypeError, ValueError):
        return None
    return values if all(map(math.isfinite, values)) else None
