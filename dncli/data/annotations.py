"""A COCO annotation file, taken apart once: what is usable in it, and every defect with its place."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from dndetr.console import brief
from dndetr.data.boxes import LEAST, clipped, leaves

AREA = 1e10  # square pixels: COCO's evaluation ignores whatever is larger, or below 0
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # what no terminal and no log shows as it is

# Kinds of defects. Those in REPAIRED are mended on reading, as DETR does (boxes are clipped, empty ones dropped). HARMLESS are
# masks, which are not used, and categories of one name, which are classes of their own: some exports name a category like
# its parent. A dataset with any other kind is not trained on.
MALFORMED, MISSING_KEY, WRONG_TYPE, NON_FINITE = "malformed file", "missing key", "wrong type", "non-finite number"
DUPLICATE, SAME_NAME, UNKNOWN_CATEGORY, UNKNOWN_IMAGE = "duplicate id", "same name", "unknown category", "unknown image"
BAD_PATH, NO_IMAGE, UNREADABLE, WRONG_SIZE = "path outside the root", "missing image", "unreadable image", "wrong size"
EMPTY_BOX, OUTSIDE, TOO_MANY, NO_SPLIT = "empty box", "box outside the image", "more objects than queries", "missing split"
WRONG_MASK, TWINS, NOTHING = "mask of another size", "categories of one name", "nothing to use"
REPAIRED, HARMLESS = frozenset({EMPTY_BOX, OUTSIDE}), frozenset({WRONG_MASK, TWINS})


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
    area: float | None  # of its mask, in pixels; None where the file has none


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
    find_same_names(found)
    if image_folder is not None:
        find_images(found, image_folder)
    return found


def read_json(found: Annotations) -> dict[str, Any] | None:
    try:
        raw = found.file.read_bytes()
        found.digest = hashlib.sha256(raw).hexdigest()
        content = json.loads(raw, object_pairs_hook=unrepeated)
    except json.JSONDecodeError as error:
        found.add(MALFORMED, f"line {error.lineno}, column {error.colno}: malformed JSON: {error.msg}; export the file again")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found.add(MALFORMED, f"line {line}: not text: byte {error.object[error.start]:#04x}; save the file as UTF-8")
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = {RecursionError: "nested too deeply", MemoryError: "too large for the memory"}.get(type(error), error)
        found.add(MALFORMED, f"cannot be read: {reason}")
    else:
        if isinstance(content, dict):
            return content
        found.add(MALFORMED, 'is not COCO: it must hold an object with "images", "annotations" and "categories"')
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
    rules = {"file_name": (TEXT, is_text), "width": ("a whole number above 0", is_length)}
    rules["height"] = rules["width"]
    if not complete(found, entry, place, rules, image_id=entry["id"]):
        return
    name = PurePath(entry["file_name"])
    if name.is_absolute() or ".." in name.parts or not name.name:
        told = f"file_name {brief(repr(entry['file_name']))} must stay in the image folder ({place})"
        found.add(BAD_PATH, told, entry["id"])
        return
    found.images[entry["id"]] = Image(entry["id"], str(name), int(entry["width"]), int(entry["height"]))


def add_category(found: Annotations, entry: dict[str, Any], place: str) -> None:
    if complete(found, entry, place, {"name": (TEXT, is_text)}):
        found.categories[entry["id"]] = entry["name"]


def add_object(found: Annotations, entry: dict[str, Any], place: str) -> None:
    rules = {
        "image_id": ("a whole number", is_id),
        "category_id": ("a whole number", is_id),
        "bbox": ("[x, y, width, height]", is_box),
    }
    optional = {"iscrowd": ("0 or 1", lambda value: value in (0, 1)), "area": (f"a number from 0 to {AREA:.0e}", is_area)}
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
        check_mask(found, image, entry, place, about)
        category, crowd = entry["category_id"], bool(entry.get("iscrowd", 0))
        found.objects.append(Object(entry["id"], image.id, category, box, crowd, entry.get("area")))


def check_box(found: Annotations, image: Image, box: tuple[float, ...], place: str, about: dict[str, Any]) -> None:
    size = f"{image.width} x {image.height}"
    if box[2] < LEAST * image.width or box[3] < LEAST * image.height:
        found.add(EMPTY_BOX, f"bbox {list(box)} has no width or no height; it is left out ({place})", **about)
    elif clipped(box, image.width, image.height) is None:
        found.add(EMPTY_BOX, f"bbox {list(box)} lies outside its image of {size}; it is left out ({place})", **about)
    elif leaves(box, image.width, image.height):
        found.add(OUTSIDE, f"bbox {list(box)} leaves its image of {size}; it is clipped ({place})", **about)


def check_mask(found: Annotations, image: Image, entry: dict[str, Any], place: str, about: dict[str, Any]) -> None:
    """A mask of another size tells that the annotation was made for another picture; its box may still be right."""
    mask = entry.get("segmentation")
    if isinstance(mask, dict) and mask.get("size") != [image.height, image.width]:
        told = f"segmentation is of [height, width] {shown(mask.get('size'))}, its image [{image.height}, {image.width}]"
        found.add(WRONG_MASK, f"{told}; only boxes are used: look whether bbox is right ({place})", **about)


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


def find_same_names(found: Annotations) -> None:
    """Two images of one file share its objects out between them; of two categories with one name, none is the right one."""
    first: dict[str, int] = {}
    for image in found.images.values():
        other = first.setdefault(image.file_name, image.id)
        if other != image.id:
            told = f"file_name {brief(repr(image.file_name))} is that of image {other} too; list each file once"
            found.add(SAME_NAME, told, image.id)
    first = {}
    for i, name in found.categories.items():
        other = first.setdefault(name, i)
        if other != i:
            found.add(TWINS, f"category {i} is named {brief(repr(name))} like category {other}; give each its own name")


def find_images(found: Annotations, folder: Path) -> None:
    """Note which images are not there, and which lie outside of the data root, the folder around `folder`.

    One listing of each folder is much faster than a look at each of 118,000 files; only links are followed.
    """
    roots = [os.path.realpath(folder), os.path.realpath(folder.parent)]  # either may be a link itself: so data is shared
    listings: dict[str, tuple[bool, dict[str, bool]]] = {}
    for image in found.images.values():
        parent, name = os.path.split(image.file_name)
        if parent not in listings:
            listings[parent] = is_within(folder / parent, roots), files_and_links(folder / parent)
        inside, files = listings[parent]
        path = folder / image.file_name
        link = files.get(name)
        if link is False and inside:
            continue
        if not os.path.isfile(path):
            found.add(NO_IMAGE, f"{brief(str(path))} {why_missing(path)}", image.id)
        elif not is_within(path, roots):
            told = f"{path} leads out of the data root, to {os.path.realpath(path)}"
            found.add(BAD_PATH, f"{told}; put the file itself there, or let data.root lie around both", image.id)


def is_within(path: Path, roots: Sequence[str]) -> bool:
    """Whether `path` lies below one of `roots` when all links are followed."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(root) for root in roots)


def files_and_links(folder: Path) -> dict[str, bool]:
    """The names of files and links in a folder, and whether each is a link; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as listed:
            return {entry.name: entry.is_symlink() for entry in listed if entry.is_symlink() or entry.is_file()}
    except (OSError, ValueError):
        return {}


def why_missing(path: Path) -> str:
    if os.path.isdir(path):
        return "is a folder; file_name must name a file"
    if os.path.lexists(path):
        return "is not a regular file" if os.path.exists(path) else "is a link that leads nowhere"
    return "does not exist" + ("; write / between folders, not \\" if "\\" in path.name else "")


def image_of(entry: dict[str, Any]) -> int | None:
    """The image that an annotation names, if it names one at all."""
    return entry.get("image_id") if is_id(entry.get("image_id")) else None


def is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    return isinstance(value, float) or is_id(value)


def is_area(value: Any) -> bool:
    return is_number(value) and (0 <= value <= AREA or not math.isfinite(value))  # the latter is said of box and area at once


TEXT = "text without control characters"


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and not UNPRINTABLE.search(value)


def is_length(value: Any) -> bool:
    return is_number(value) and 0 < value < 2**31 and value == int(value)


def is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(is_number(x) for x in value)


def shown(value: Any) -> str:
    try:
        return brief(json.dumps(value), 60)
    except RecursionError:
        return "something deeply nested"
