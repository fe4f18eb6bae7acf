"""COCO format: which files hold a split, and its images, objects and categories as the detector counts them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dndetr.console import UserError
from dndetr.data.annotations import HARMLESS, REPAIRED, Annotations, Object, read_annotations
from dndetr.data.boxes import clipped

SPLITS = ("train", "val")
SHOWN = 10  # defects that an error lists


@dataclass(frozen=True)
class Categories:
    """Category ids of the annotations, gaps and all, in ascending order: class c of the detector is `ids[c]`."""

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def labels(self) -> dict[int, int]:
        """Category id to class 0 .. C-1."""
        return {category: label for label, category in enumerate(self.ids)}


@dataclass(frozen=True)
class ImageRecord:
    """One image as the annotations describe it."""

    id: int
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class Objects:
    """The objects of one image, without crowds."""

    labels: Tensor  # (M,) int64, 0 .. C-1
    boxes: Tensor  # (M, 4) float32 cxcywh in [0, 1] of the image

    def __len__(self) -> int:
        return len(self.labels)


class Written(NamedTuple):
    """All K entries of the annotations as they are written, crowds and boxes outside of their images included."""

    image_ids: np.ndarray  # (K,) int64
    category_ids: np.ndarray  # (K,) int64
    boxes: np.ndarray  # (K, 4) float64 x, y, width, height in pixels
    areas: np.ndarray  # (K,) float64, the box's where none is written
    crowds: np.ndarray  # (K,) bool


@dataclass(frozen=True)
class Split:
    """The training or the validation images with their objects.

    Crowds are no objects here: nothing is trained on them. Evaluation finds them in `written`.
    """

    name: str
    annotation_file: Path
    digest: str  # SHA-256 of that file
    images: list[ImageRecord]
    categories: Categories
    labels: Tensor  # of all objects, image after image
    boxes: Tensor
    spans: dict[int, tuple[int, int]]  # image id -> first and last + 1 of its objects
    written: Written

    def objects(self, image_id: int) -> Objects:
        first, last = self.spans[image_id]
        return Objects(self.labels[first:last], self.boxes[first:last])

    @property
    def most_objects(self) -> int:
        """The most objects in one image."""
        return max(last - first for first, last in self.spans.values())


class SplitFiles(NamedTuple):
    annotation_file: Path
    image_folder: Path


def resolve_root(config_root: str) -> Path:
    """The folder that `data.root` means: a path, or `shapes` for the generated dataset, which is made if need be."""
    if config_root == "shapes":
        from dndetr.data.shapes import shapes_root

        return shapes_root()
    return Path(os.path.expanduser(config_root))


def find_split(root: str | Path, split: str) -> SplitFiles:
    """The files of `split` (train or val) under `root`, in COCO 2017's layout or the plain one.

    Raises UserError that says what was looked for.
    """
    root = Path(root)
    if not os.path.isdir(root):  # unlike Path's, it answers for names that no system allows
        raise UserError(f"{root}: no such folder; set data.root to a dataset in COCO format, or to shapes")
    layouts = [SplitFiles(root / "annotations" / f"instances_{name}.json", root / name) for name in (f"{split}2017", split)]
    for files in layouts:
        if files.annotation_file.is_file():
            if not files.image_folder.is_dir():
                raise UserError(f"{files.annotation_file} is there, but not its images: no folder {files.image_folder}")
            return files
        if files.annotation_file.exists():
            raise UserError(f"{files.annotation_file} is not a regular file; put the annotations there")
    looked = " nor ".join(str(files.annotation_file.relative_to(root)) for files in layouts)
    raise UserError(
        f"{root}: found neither {looked}",
        "a dataset has annotations/instances_train.json and instances_val.json beside the image folders train and val, "
        "or COCO 2017's names",
    )


def load_split(root: str | Path, split: str, categories: Categories | None = None) -> Split:
    """Read `split` of the dataset under `root`.

    Boxes are clipped to their image, and left out where nothing remains, as DETR does; images without boxes stay.
    `categories` is the map of a checkpoint (or of the training split), which the file may use only a part of. Raises
    UserError for defects, listing the first ones, for foreign categories, and where there is nothing to train on.
    """
    files = find_split(root, split)
    found = read_annotations(files.annotation_file, files.image_folder)
    refuse_defects(found, root)
    if lack := lacking(found, split):
        raise UserError(f"{found.file}: {lack}")
    if categories is None:
        ids = sorted(found.categories)
        categories = Categories(tuple(ids), tuple(found.categories[i] for i in ids))
    else:
        refuse_foreign(found, categories)
    return pack(found, split, files.image_folder, categories)


def refuse_defects(found: Annotations, root: str | Path) -> None:
    defects = [defect for defect in found.defects if defect.kind not in REPAIRED | HARMLESS]
    if not defects:
        return
    more = [f"... and {len(defects) - SHOWN} more"] if len(defects) > SHOWN else []
    count = f"{len(defects)} defect{'s' if len(defects) > 1 else ''}"
    raise UserError(*map(str, defects[:SHOWN]), *more, f"{count}; see them all with: dndetr data check {root}")


def lacking(found: Annotations, split: str) -> str | None:
    """What a split that has no defects still lacks to be of any use."""
    if not found.images:
        return '"images" is empty; a split needs at least one image'
    if split == "train" and not any(is_trained_on(item, found) for item in found.objects):
        return f"none of the {len(found.images)} images has an object to train on"
    return None


def is_trained_on(item: Object, found: Annotations) -> bool:
    """Whether an entry is an object of the detector: no crowd, and with something in its image."""
    image = found.images[item.image_id]
    return not item.crowd and clipped(item.box, image.width, image.height) is not None


def refuse_foreign(found: Annotations, known: Categories) -> None:
    """Categories that the checkpoint does not know, or knows by another name."""
    names = dict(zip(known.ids, known.names, strict=True))
    lines = []
    for i, name in sorted(found.categories.items()):
        if i not in names:
            lines.append(f"{found.file}: category {i} ({name}) is not among the {len(known)} that were trained")
        elif names[i] != name:
            lines.append(f"{found.file}: category {i} is {name}, but was trained as {names[i]}")
    if lines:
        more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise UserError(*lines[:SHOWN], *more, "give the annotations the category ids and names of the training data")


def pack(found: Annotations, name: str, image_folder: Path, categories: Categories) -> Split:
    """Everything in two tensors, which worker processes share instead of copying."""
    of_image: dict[int, list[Object]] = defaultdict(list)
    for item in found.objects:
        if is_trained_on(item, found):
            of_image[item.image_id].append(item)
    labels: list[int] = []
    boxes: list[Sequence[float]] = []
    spans = {}
    for image in found.images.values():
        first = len(labels)
        labels += [categories.labels[item.category_id] for item in of_image[image.id]]
        boxes += [clipped(item.box, image.width, image.height) for item in of_image[image.id]]
        spans[image.id] = (first, len(labels))
    return Split(
        name=name,
        annotation_file=found.file,
        digest=found.digest,
        images=[ImageRecord(i.id, image_folder / i.file_name, i.width, i.height) for i in found.images.values()],
        categories=categories,
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        spans=spans,
        written=as_written(found.objects),
    )


def as_written(objects: Sequence[Object]) -> Written:
    boxes = np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4)
    areas = np.array([np.nan if item.area is None else item.area for item in objects], dtype=np.float64)
    with np.errstate(over="ignore"):  # a box may be as large as floats are
        of_boxes = boxes[:, 2] * boxes[:, 3]
    return Written(
        image_ids=np.array([item.image_id for item in objects], dtype=np.int64),
        category_ids=np.array([item.category_id for item in objects], dtype=np.int64),
        boxes=boxes,
        areas=np.where(np.isnan(areas), of_boxes, areas),
        crowds=np.array([item.crowd for item in objects], dtype=bool),
    )
