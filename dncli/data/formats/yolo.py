"""YOLO: data.yaml and a text file an image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath

import yaml

from dndetr.console import UserError
from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations, shown
from dndetr.data.formats.reading import Box, lines_of, say_bare, start_images, take_object
from dndetr.data.formats.source import Source, Sources, lines_in, one_of, pictures_below
from dndetr.data.store import FILE, Place, Store, is_file, is_folder, join
from dndetr.settings import Loader

SLACK = 0.01  # by which rounding may lead out of the image


def yolo(store: Store) -> Sources:
    """YOLO's data.yaml, or the class names of Label Studio's and Darknet's exports beside images/."""
    files = [name for name, kind in store.listing().items() if kind == FILE]
    usual = [name for name in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml") if name in files]
    others = [name for name in files if name.endswith((".yaml", ".yml")) and "names" in (mapping_of(store, name) or {})]
    if name := one_of(store, usual or others, "YOLO's data.yaml"):
        return yolo_splits(store, name)
    names = next((name for name in ("classes.txt", "obj.names") if name in files), None)
    if names is None or not is_folder(store, "images"):
        return {}
    classes = dict(enumerate(lines_in(store, names)))
    reader = partial(read_yolo, images=pictures_below(store, "images"), names=classes)
    return {"train": Source("YOLO", names, store, reader)}


def mapping_of(store: Store, name: str) -> dict | None:
    try:
        content = yaml.load(store.place(name).read_bytes().decode("utf-8-sig")[:1_000_000], Loader=Loader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def yolo_splits(store: Store, name: str) -> Sources:
    content = mapping_of(store, name)
    if content is None:
        raise UserError(f"{store.place(name)}: is not YAML with train, val and names")
    names = yolo_names(store.place(name), content)
    sources = {}
    for split, keys in (("train", ("train",)), ("val", ("val", "validation", "valid"))):
        told = next((content[key] for key in keys if content.get(key)), None)
        if told is None:
            continue
        images = [
            image for one in (told if isinstance(told, list) else [told]) for image in yolo_images(store, name, content, one)
        ]
        if not images:
            raise UserError(f"{store.place(name)}: {split} names {told!r}, where there are no images")
        sources[split] = Source("YOLO", name, store, partial(read_yolo, images=sorted(set(images)), names=names))
    if not sources:
        raise UserError(f"{store.place(name)}: has neither train nor val; write there where the images are")
    return sources


def yolo_names(file: Place, content: dict) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        found = {key if isinstance(key, int) else -1: str(value) for key, value in names.items()}
    elif isinstance(names, list):
        found = {i: str(value) for i, value in enumerate(names)}
    else:
        found = {i: f"class_{i}" for i in range(count)} if isinstance(count, int) else {}
    if not found or sorted(found) != list(range(len(found))):
        raise UserError(f"{file}: names must be a list, or a map from 0, 1, 2 ... to the names of the classes")
    if isinstance(count, int) and count != len(found):
        raise UserError(f"{file}: nc is {count}, but names has {len(found)}; mend one of them")
    return found


def yolo_images(store: Store, name: str, content: dict, told: object) -> list[str]:
    """The images that a value of train or val means: a folder, or a .txt of images."""
    if not isinstance(told, str):
        raise UserError(f"{store.place(name)}: train and val must name folders or .txt files, got {told!r}")
    for path in yolo_paths(store, content.get("path"), told):
        if is_folder(store, path):
            return pictures_below(store, path)
        if path.endswith(".txt") and is_file(store, path):
            folder = path.rpartition("/")[0]
            return [image for line in lines_in(store, path) for image in listed_image(store, folder, line)]
    raise UserError(f"{store.place(name)}: {told!r} is not there; write train and val relative to that file")


def listed_image(store: Store, folder: str, line: str) -> list[str]:
    line = line.replace("\\", "/")
    paths = (path for base in (folder, None) for path in yolo_paths(store, base, line))
    return [next((path for path in paths if is_file(store, path)), normal(line))]


def yolo_paths(store: Store, base: object, told: str) -> list[str]:
    """Where a path of data.yaml may lead to in the store: from `path`, from the file itself, and with the leading ../ that
    Roboflow writes taken away. A path on the machine that wrote it is followed where it ends in this store.
    """
    told = told.replace("\\", "/")
    candidates = [told, told.removeprefix("../"), told.removeprefix("./")]
    if isinstance(base, str):
        candidates = [join(base.replace("\\", "/").rstrip("/"), told), *candidates]
    root = str(store.root.absolute()).replace("\\", "/").rstrip("/")
    inside = [c.removeprefix(f"{root}/") for c in candidates]
    return [normal(c) for c in inside if not c.startswith("/") and normal(c).split("/")[0] != ".."]


def normal(path: str) -> str:
    """Without . and, where that can be, without .. in it."""
    found = os.path.normpath(path).replace("\\", "/")
    return "" if found == "." else found


def read_yolo(found: Annotations, images: Sequence[str], names: Mapping[int, str]) -> None:
    """Rows `class x y width height`, shares of the image, or `class x y x y x y ...`, a polygon; `names` by class number.

    A label file lies where its image does, with the last folder `images` of the path called `labels`. An image without one
    has no objects. A sixth number, a score or the number of a track, is passed over.
    """
    for number, name in names.items():
        found.take("categories", {"id": number, "name": name}, f"names[{number}]")
    bare = 0
    for name, image in start_images(found, images):
        labels = labels_of(name)
        if not is_file(found.store, labels):
            bare += 1
            continue
        for number, line in enumerate(lines_of(found, found.store.place(labels)), start=1):
            if not line.strip():
                continue
            row = yolo_row(line)
            if isinstance(row, str):
                found.add(kinds.WRONG_TYPE, f"line {number}: {row}", image.id)
                continue
            category, (x0, y0, x1, y1) = row
            corners = x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height
            take_object(found, image.id, category, corners, f"line {number}")
    found.reading = None
    say_bare(found, bare, "label file")


def labels_of(image: str) -> str:
    """images/train/a.jpg -> labels/train/a.txt"""
    before, folder, after = f"/{image}".rpartition("/images/")
    renamed = f"{before}/labels/{after}" if folder else f"/{image}"
    return str(PurePosixPath(renamed).with_suffix(".txt"))[1:]


def yolo_row(line: str) -> tuple[int, Box] | str:
    """Class and corners, as shares of the image, or what is wrong with the row."""
    try:
        category, *values = (float(word) for word in line.split())
    except ValueError:
        return f"must hold numbers, got {shown(line.strip())}"
    if category != category or category < 0 or category != int(category):
        return f"the class must be a whole number from 0 on, got {line.split()[0]}"
    if len(values) in (4, 5):
        x, y, width, height = values[:4]
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        values = values[:4]
    elif len(values) >= 6 and len(values) % 2 == 0:
        corners = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    else:
        return f"must be class x y width height, or class and the points of a polygon, got {len(values) + 1} numbers"
    if not all(-SLACK <= value <= 1 + SLACK for value in values):  # nor is what is not a number
        return f"the numbers must be shares of the image, from 0 to 1, got {' '.join(line.split()[1:5])}"
    return int(category), corners
