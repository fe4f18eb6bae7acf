"""A split of a dataset: its images, objects and categories as the detector counts them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dndetr.console import UserError, shorten
from dndetr.data.annotations import HARMLESS, REPAIRED, Annotations, Object, unique_names
from dndetr.data.boxes import clipped
from dndetr.data.layouts import Dataset
from dndetr.data.remarks import mended, remarks_on
from dndetr.data.store import Place

SHOWN = 10  # defects that an error lists


@dataclass(frozen=True)
class Categories:
    """Category ids of the annotations, gaps and all, in ascending order: class c of the detector is `ids[c]`.

    No two have one name: see `named`.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def named(cls, written: Mapping[int, str]) -> Categories:
        """Those of a file or a checkpoint, by id. Of equal names all but the first become NAME (ID)."""
        names = unique_names(written)
        return cls(tuple(names), tuple(names.values()))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def written(self) -> tuple[str, ...]:
        """The names as annotations have them, where several categories may have one."""
        shorter = (name.removesuffix(f" ({i})") for i, name in zip(self.ids, self.names, strict=True))
        return tuple(short if short in self.names else name for short, name in zip(shorter, self.names, strict=True))

    @cached_property
    def labels(self) -> dict[int, int]:
        """Category id to class 0 .. C-1."""
        return {category: label for label, category in enumerate(self.ids)}

    def knows(self, category: int, name: str) -> bool:
        """Whether annotations mean one of these classes by a category."""
        label = self.labels.get(category)
        return label is not None and name in (self.names[label], self.written[label])

    def cover(self, other: Categories) -> bool:
        """Whether all of `other` are among these, ids and names."""
        return all(self.knows(i, name) for i, name in zip(other.ids, other.written, strict=True))

    def shared(self, other: Categories) -> dict[int, int]:
        """The classes that are among `other`, by name: class here to class there. Of one name of several the ids decide."""
        found = {}
        for label, (category, name) in enumerate(zip(self.ids, self.written, strict=True)):
            same = [there for there, theirs in enumerate(other.written) if theirs == name]
            if len(same) > 1 or self.written.count(name) > 1:
                same = [there for there in same if other.ids[there] == category]
            if same:
                found[label] = same[0]
        return found


@dataclass(frozen=True)
class ImageRecord:
    """One image as the annotations describe it."""

    id: int
    path: Place
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
    annotation_file: Place  # or what stands for all of them
    digest: str  # SHA-256 of the annotations
    images: list[ImageRecord]
    categories: Categories
    labels: Tensor  # of all objects, image after image
    boxes: Tensor
    spans: dict[int, tuple[int, int]]  # image id -> first and last + 1 of its objects
    written: Written
    mended: tuple[str, ...] = ()  # what the detector is taught otherwise than it is written, or looks wrong
    remarks: tuple[str, ...] = ()  # what was assumed in reading them, and what else is worth a line

    def objects(self, image_id: int) -> Objects:
        first, last = self.spans[image_id]
        return Objects(self.labels[first:last], self.boxes[first:last])

    def among(self, categories: Categories) -> Split:
        """The same objects as classes of a detector that knows others too."""
        classes = torch.tensor([categories.labels[i] for i in self.categories.ids], dtype=torch.int64)
        return replace(self, categories=categories, labels=classes[self.labels])

    @property
    def most_of_a_class(self) -> int:
        """The most objects of one class in one image, crowds left out."""
        written = self.written
        pairs = np.stack((written.image_ids, written.category_ids))[:, ~written.crowds]
        return int(np.unique(pairs, axis=1, return_counts=True)[1].max(initial=0))

    @property
    def most_objects(self) -> int:
        """The most objects in one image."""
        return max(last - first for first, last in self.spans.values())


def load_split(dataset: Dataset, split: str, categories: Categories | None = None) -> Split:
    """Read `split`, train or val, of a dataset.

    Boxes are clipped to their image, and left out where nothing remains, as DETR does; images without boxes stay.
    `categories` is the map of a checkpoint (or of the training split), which the file may use only a part of. Raises
    UserError for defects, listing the first ones, for foreign categories, and where there is nothing to train on.
    """
    found = dataset.annotations(split)
    refuse_defects(found, dataset.root)
    if lack := lacking(found, split):
        raise UserError(f"{found.file}: {lack}")
    if categories is None:
        categories = Categories.named(found.categories)
    else:
        leave_out_unused(found, categories)
        refuse_foreign(found, categories)
    packed = pack(found, split, categories)
    return replace(packed, remarks=(*found.remarks, *remarks_on(packed)))


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
        crowds = sum(item.crowd for item in found.objects)
        why = f": {crowds} are marked as crowds (iscrowd), and data.crowds=objects takes these for objects" if crowds else ""
        return f"none of the {len(found.images)} images has an object to train on{why}"
    return None


def is_trained_on(item: Object, found: Annotations) -> bool:
    """Whether an entry is an object of the detector: no crowd, none to be ignored, and with something in its image."""
    image = found.images[item.image_id]
    return not item.crowd and not item.ignore and clipped(item.box, image.width, image.height) is not None


def leave_out_unused(found: Annotations, known: Categories) -> None:
    """Take away the categories that are not among `known` and have no object, with a line."""
    used = {item.category_id for item in found.objects}
    unused = sorted(i for i in found.categories if i not in known.labels and i not in used)
    names = [found.categories.pop(i) for i in unused]
    if names:
        them = "category" if len(names) == 1 else "categories"
        found.remarks.append(f"{len(names)} {them} without objects, left out since training has none such: {shorten(names)}")


def foreign(found: Annotations, known: Categories) -> list[str]:
    """The categories that are not among `known`, or there by another name."""
    lines, objects = [], Counter(item.category_id for item in found.objects)
    for i, name in sorted(found.categories.items()):
        if i not in known.labels:
            have = "1 object has" if objects[i] == 1 else f"{objects[i]} objects have"
            lines.append(f"category {i} ({name}) is not among the {len(known)} that were trained, and {have} it")
        elif not known.knows(i, name):
            lines.append(f"category {i} is {name}, but was trained as {known.names[known.labels[i]]}")
    return lines


def refuse_foreign(found: Annotations, known: Categories) -> None:
    lines = [f"{found.file}: {line}" for line in foreign(found, known)]
    if lines:
        more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise UserError(*lines[:SHOWN], *more, "give the annotations the category ids and names of the training data")


def pack(found: Annotations, name: str, categories: Categories) -> Split:
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
        images=[ImageRecord(i.id, found.place(i), i.width, i.height) for i in found.images.values()],
        categories=categories,
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        spans=spans,
        written=as_written(found.objects),
        mended=tuple(mended(found)),
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
