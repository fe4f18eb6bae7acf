"""A COCO annotation file, taken apart once: what is usable in it, and every defect with its place."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

SLACK = 1.0  # pixels by which a box may leave its image: annotation tools round

# Kinds of defects. Those in REPAIRED are mended on reading, as DETR does (boxes are clipped, empty ones dropped).
MALFORMED, MISSING_KEY, WRONG_TYPE, NON_FINITE = "malformed file", "missing key", "wrong type", "non-finite number"
DUPLICATE, UNKNOWN_CATEGORY, UNKNOWN_IMAGE = "duplicate id", "unknown category", "unknown image"
BAD_PATH, NO_IMAGE, UNREADABLE, WRONG_SIZE = "path outside the root", "missing image", "unreadable image", "wrong size"
EMPTY_BOX, OUTSIDE, TOO_MANY, NO_SPLIT = "empty box", "box outside the image", "more objects than queries", "missing split"
REPAIRED = frozenset({EMPTY_BOX, OUTSIDE})


@dataclass(frozen=True)
class Defect:
    """One thing wrong with a dataset, and where."""

    kind: str
    file: str
    image_id: int | None
    annotation_id: int | None
    message: str

    def __str__(self) -> str:
        image = f" image {self.image_id}:" if self.image_id is not None else ""
        annotation = f" annotation {self.annotation_id}:" if self.annotation_id is not None else ""
        return f"{self.file}:{image}{annotation} {self.message}"


@dataclass(frozen=True)
class Image:
    """One entry of "images"."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class Object:
    """One entry of "annotations" that names a known image and a known category."""

    id: int
    image_id: int
    category_id: int
    box: tuple[float, float, float, float]  # x, y, width, height in pixels, as written
    crowd: bool


@dataclass
class Annotations:
    """The usable part of an annotation file, in its order."""

    file: Path
    images: dict[int, Image] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    objects: list[Object] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    digest: str = ""  # SHA-256 of the file: another one is another dataset
    listed: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # every id of each list

    def add(self, kind: str, message: str, image_id: int | None = None, annotation_id: int | None = None) -> None:
        self.defects.append(Defect(kind, str(self.file), image_id, annotation_id, message))


def read_annotations(file: Path, image_folder: Path | None = None) -> Annotations:
    """Read and examine a COCO annotation file. Never raises on bad content: see `.defects`.

    With `image_folder` the images must exist there; they are not opened.
    """
    found = Annotations(file)
    content = read_json(found)
    if content is None:
        return found
    for name, examine in (("images", add_image), ("categories", add_category), ("annotations", add_object)):
        seen = found.listed[name]
        for place, entry in entries(found, content, name):
            identity = entry["id"]
            if identity in seen:
                about = {"images": (identity, None), "annotations": (image_of(entry), identity)}.get(name, ())
                found.add(DUPLICATE, f"id {identity} appears again ({place}); ids must be unique in the file", *about)
                continue
            seen.add(identity)
            examine(found, entry, place)
    if image_folder is not None:
        find_images(found, image_folder)
    return found


def read_json(found: Annotations) -> dict[str, Any] | None:
    try:
        raw = found.file.read_bytes()
        found.digest = hashlib.sha256(raw).hexdigest()
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        found.add(MALFORMED, f"line {error.lineno}, column {error.colno}: malformed JSON: {error.msg}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found.add(MALFORMED, f"line {line}: not text: byte {error.object[error.start]:#04x}")
    except (OSError, ValueError, RecursionError) as error:
        found.add(MALFORMED, f"cannot be read: {error}")
    else:
        if isinstance(content, dict):
            return content
        found.add(MALFORMED, 'is not COCO: it must hold an object with "images", "annotations" and "categories"')
    return None


def entries(found: Annotations, content: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list that are objects with an id, each with its place in the file."""
    if name not in content:
        found.add(MISSING_KEY, f'has no "{name}"')
        return
    if not isinstance(content[name], list):
        found.add(WRONG_TYPE, f'"{name}" must be a list, got {shown(content[name])}')
        return
    for i, entry in enumerate(content[name]):
        place = f"{name}[{i}]"
        if not isinstance(entry, dict):
            found.add(WRONG_TYPE, f"{place} must be an object, got {shown(entry)}")
        elif "id" not in entry:
            found.add(MISSING_KEY, f'{place} has no "id"')
        elif not is_id(entry["id"]):
            found.add(WRONG_TYPE, f"{place}: id must be a whole number, got {shown(entry['id'])}")
        else:
            yield place, entry


def add_image(found: Annotations, entry: dict[str, Any], place: str) -> None:
    rules = {"file_name": ("text", is_text), "width": ("a whole number above 0", is_length)}
    rules["height"] = rules["width"]
    if not complete(found, entry, place, rules, image_id=entry["id"]):
        return
    name = entry["file_name"]
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        found.add(BAD_PATH, f"file_name {name!r} must stay in the image folder ({place})", entry["id"])
        return
    found.images[entry["id"]] = Image(entry["id"], name, int(entry["width"]), int(entry["height"]))


def add_category(found: Annotations, entry: dict[str, Any], place: str) -> None:
    if complete(found, entry, place, {"name": ("text", is_text)}):
        found.categories[entry["id"]] = entry["name"]


def add_object(found: Annotations, entry: dict[str, Any], place: str) -> None:
    rules = {
        "image_id": ("a whole number", is_id),
        "category_id": ("a whole number", is_id),
        "bbox": ("[x, y, width, height]", is_box),
    }
    optional = {"iscrowd": ("0 or 1", lambda value: value in (0, 1)), "area": ("a number", is_number)}
    rules |= {name: rule for name, rule in optional.items() if name in entry}
    about = {"image_id": image_of(entry), "annotation_id": entry["id"]}
    if not complete(found, entry, place, rules, **about):
        return
    image, box = found.images.get(entry["image_id"]), tuple(entry["bbox"])
    sound = image is not None and entry["category_id"] in found.categories
    if not all(math.isfinite(x) for x in (*box, entry.get("area", 0))):
        found.add(NON_FINITE, f"bbox and area must be finite, got {shown(entry['bbox'])} ({place})", **about)
        sound = False
    if entry["category_id"] not in found.listed["categories"]:
        found.add(UNKNOWN_CATEGORY, f'category {entry["category_id"]} is not in "categories" ({place})', **about)
    if entry["image_id"] not in found.listed["images"]:
        found.add(UNKNOWN_IMAGE, f'image {entry["image_id"]} is not in "images" ({place})', **about)
    if sound:
        check_box(found, image, box, place, about)
        category, crowd = entry["category_id"], bool(entry.get("iscrowd", 0))
        found.objects.append(Object(entry["id"], image.id, category, box, crowd))


def check_box(found: Annotations, image: Image, box: tuple[float, ...], place: str, about: dict[str, Any]) -> None:
    x, y, width, height = box
    beyond = max(-x, -y, x + width - image.width, y + height - image.height)
    if width <= 0 or height <= 0:
        found.add(EMPTY_BOX, f"bbox {list(box)} has no width or no height; it is left out ({place})", **about)
    elif beyond > SLACK:
        size = f"{image.width} x {image.height}"
        found.add(OUTSIDE, f"bbox {list(box)} leaves its image of {size}; it is clipped ({place})", **about)


def complete(
    found: Annotations,
    entry: dict[str, Any],
    place: str,
    rules: dict[str, tuple[str, Any]],
    image_id: int | None = None,
    annotation_id: int | None = None,
) -> bool:
    """Whether `entry` has all the keys of `rules` with values that hold; what does not is noted."""
    sound = True
    for name, (what, holds) in rules.items():
        if name not in entry:
            found.add(MISSING_KEY, f'has no "{name}" ({place})', image_id, annotation_id)
            sound = False
        elif not holds(entry[name]):
            found.add(WRONG_TYPE, f"{name} must be {what}, got {shown(entry[name])} ({place})", image_id, annotation_id)
            sound = False
    return sound


def find_images(found: Annotations, folder: Path) -> None:
    """Note which images are not there. One listing is much faster than a look at each of 118,000 files."""
    try:
        present = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    except OSError:
        present = set()
    for image in found.images.values():
        if image.file_name not in present and not os.path.isfile(folder / image.file_name):
            found.add(NO_IMAGE, f"{folder / image.file_name} does not exist", image.id)


def image_of(entry: dict[str, Any]) -> int | None:
    """The image that an annotation names, if it names one at all."""
    return entry.get("image_id") if is_id(entry.get("image_id")) else None


def is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    return isinstance(value, float) or is_id(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_length(value: Any) -> bool:
    return is_number(value) and 0 < value < 2**31 and value == int(value)


def is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(is_number(x) for x in value)


def shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
