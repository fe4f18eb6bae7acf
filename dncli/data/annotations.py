"""Annotations in COCO's terms, whatever format they were written in: what is usable in them, and every defect."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from dndetr.console import brief
from dndetr.data.boxes import LEAST, clipped, leaves
from dndetr.data.store import Place, Store

AREA = 1e10  # square pixels: COCO's evaluation ignores whatever is larger, or below 0
WINDOWS_DRIVE = re.compile("[A-Za-z]:")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # what no terminal and no log shows as it is

# Kinds of defects. Those in REPAIRED are mended on reading, as DETR does (boxes are clipped, empty ones dropped). HARMLESS are
# masks, which are not used, and categories of one name, which are classes of their own: some exports name a category like
# its parent. A dataset with any other kind is not trained on.
MALFORMED, MISSING_KEY, WRONG_TYPE, NON_FINITE = "malformed file", "missing key", "wrong type", "non-finite number"
DUPLICATE, SAME_NAME, UNKNOWN_CATEGORY, UNKNOWN_IMAGE = "duplicate id", "same name", "unknown category", "unknown image"
BAD_PATH, NO_IMAGE, UNREADABLE, WRONG_SIZE = "path outside the root", "missing image", "unreadable image", "wrong size"
EMPTY_BOX, OUTSIDE, TOO_MANY, NO_SPLIT = "empty box", "box outside the image", "more objects than queries", "missing split"
WRONG_MASK, TWINS, NOTHING = "mask of another size", "categories of one name", "nothing to use"
NORMALISED, CORNERS, REPEATED = "boxes in shares of the image", "boxes that look like corners", "annotated twice"
REPAIRED, HARMLESS = frozenset({EMPTY_BOX, OUTSIDE}), frozenset({WRONG_MASK, TWINS, CORNERS, REPEATED})


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
    file_name: str  # as written, then, once the file is found, its place in the store
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
    area: float | None = None  # of its mask, in pixels; None where the file has none
    ignore: bool = False  # an object that nobody is to be taught: "ignore" in some COCO files, "difficult" in Pascal VOC
    mask: bool = False  # whether the file has an outline of it, which nothing here uses


@dataclass
class Annotations:
    """The usable part of the annotations of one split, in their order. Readers (dncli/data/formats.py) fill it."""

    file: Place  # the annotation file, or what stands for all of them
    store: Store | None = None  # that holds the images
    exif: str = "apply"  # data.exif, by which a picture has its size where the annotations do not tell it
    folder: str = ""  # in it, where the images should be
    images: dict[int, Image] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    groups: dict[int, str] = field(default_factory=dict)  # the name of the group that a category is in, where one is told
    objects: list[Object] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what was assumed, and no defect
    reading: Place | None = None  # the file that entries come from just now, where they are several
    listed: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))  # every id of each list
    hash: Any = field(default_factory=hashlib.sha256)  # of all that was read

    @property
    def digest(self) -> str:
        """SHA-256 of the annotations: others make another dataset, wherever they lie."""
        return self.hash.hexdigest()

    def add(self, kind: str, message: str, image_id: int | None = None, annotation_id: int | None = None) -> None:
        self.defects.append(Defect(kind, str(self.reading or self.file), image_id, annotation_id, message))

    def take(self, name: str, entry: dict[str, Any], place: str) -> None:
        """Examine one entry of the list `name`, images, categories or annotations; `place` says where it stands."""
        identity, seen = entry["id"], self.listed[name]
        if identity in seen:
            about = {"images": (identity, None), "annotations": (image_of(entry), identity)}.get(name, ())
            self.add(DUPLICATE, f"id {identity} appears again ({place}); ids must be unique in the file", *about)
            return
        seen.add(identity)
        EXAMINE[name](self, entry, place)

    def place(self, image: Image) -> Place:
        """The file of an image that was found."""
        return self.store.place(image.file_name)


def add_image(found: Annotations, entry: dict[str, Any], place: str) -> None:
    rules = {"file_name": (TEXT, is_text), "width": ("a whole number above 0", is_length)}
    rules["height"] = rules["width"]
    if not complete(found, entry, place, rules, image_id=entry["id"]):
        return
    name = PurePosixPath(entry["file_name"].replace("\\", "/"))  # as Windows writes it
    if leads_out(str(name)) or not name.name:
        told = f"file_name {brief(repr(entry['file_name']))} must stay in the image folder ({place})"
        found.add(BAD_PATH, told, entry["id"])
        return
    found.images[entry["id"]] = Image(entry["id"], str(name), int(entry["width"]), int(entry["height"]))


def leads_out(name: str) -> bool:
    """Whether a path, written with /, may lead out of the folder that it is in."""
    path = PurePosixPath(name)
    return path.is_absolute() or bool(WINDOWS_DRIVE.match(name)) or ".." in path.parts


def add_category(found: Annotations, entry: dict[str, Any], place: str) -> None:
    if complete(found, entry, place, {"name": (TEXT, is_text)}):
        found.categories[entry["id"]] = entry["name"]
        if is_text(entry.get("supercategory")):
            found.groups[entry["id"]] = entry["supercategory"]


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
        ignored, mask = entry.get("ignore") in (1, True), bool(entry.get("segmentation"))
        found.objects.append(Object(entry["id"], image.id, category, box, crowd, entry.get("area"), ignored, mask))


EXAMINE = {"images": add_image, "categories": add_category, "annotations": add_object}


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


def leave_out_groups(found: Annotations, used_elsewhere: Callable[[], set[int]]) -> None:
    """Take away the categories that only group others, as Roboflow writes one: they have no object, and others name them as
    their group. A category that is in a group of its own name is one of the group, as COCO's person.

    `used_elsewhere` tells the categories that have objects in the other split; it is asked only where that matters.
    """
    used = {item.category_id for item in found.objects}
    empty = {i: name for i, name in found.categories.items() if i not in used and found.groups.get(i) != name}
    empty = {i: name for i, name in empty.items() if name in found.groups.values()}
    for i in sorted(empty.keys() - used_elsewhere() if empty else ()):
        found.remarks.append(f"category {i} ({brief(empty[i])}) only groups others and has no object: it is no class")
        del found.categories[i]


def find_twins(found: Annotations) -> None:
    """Of two categories with one name, none is the right one."""
    first: dict[str, int] = {}
    for i, name in unique_names(found.categories).items():
        written = found.categories[i]
        other = first.setdefault(written, i)
        if other != i:
            told = f"category {i} is named {brief(repr(written))} like category {other}, and called {brief(repr(name))} here"
            found.add(TWINS, f"{told}; give each its own name")


def unique_names(categories: Mapping[int, str]) -> dict[int, str]:
    """Each category with a name of its own, by ascending id: of equal names the first stays, the others become NAME (ID)."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for i, written in sorted(categories.items()):
        name = written
        while name in taken or (name != written and name in categories.values()):
            name = f"{name} ({i})"
        names[i] = name
        taken.add(name)
    return names


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
