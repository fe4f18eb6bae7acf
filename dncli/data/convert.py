"""Any dataset that is found, in COCO 2017's layout: pictures byte for byte, annotations as they were written."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from dndetr.console import UserError
from dndetr.data.annotations import Annotations, Object, is_area
from dndetr.data.coco import Categories, refuse_defects, refuse_foreign
from dndetr.data.formats.source import SPLITS
from dndetr.data.images import in_a_line
from dndetr.data.layouts import Dataset
from dndetr.data.store import Place
from dndetr.files import new_folder

WORDS = {"train": "training", "val": "validation"}


def convert(dataset: Dataset, out: Path, track: Callable[[Iterable], Iterable] = iter) -> list[str]:
    """Write the splits that there are to `out`, a new or empty folder that appears when it is complete; says what it holds.

    Ids, the order of classes, boxes, areas and the marks of crowds and of ignored objects stay, masks do not. `track` wraps
    the images of a split, for a progress bar. Raises UserError for what a training refuses too: defects, and classes that
    the training split does not have.
    """
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(dataset.root)):
        raise UserError(f"{out}: lies in the dataset that is converted, {dataset.root}; choose a place outside")
    splits = {split: dataset.annotations(split) for split in dataset.splits}
    for found in splits.values():
        refuse_defects(found, dataset.root)
    if len(splits) == len(SPLITS):
        refuse_foreign(splits["val"], Categories.named(splits["train"].categories))
    with new_folder(out, "choose another place with --to") as draft:
        (draft / "annotations").mkdir()
        for split, found in splits.items():
            names = names_within(found)
            copy_images(found, names, draft / f"{split}2017", track)
            content = json.dumps(as_coco(found, names))
            (draft / "annotations" / f"instances_{split}2017.json").write_text(content)
    return lines(dataset, splits, out)


def names_within(found: Annotations) -> dict[int, str]:
    """File names by image id, in the folder of their split.

    That is the folder that an annotation file's names count from, else the lowest one that holds all of the images.
    """
    names = {i: PurePosixPath(image.file_name) for i, image in found.images.items()}
    folder = PurePosixPath(found.folder)
    if not found.folder or not all(name.is_relative_to(folder) for name in names.values()):
        folder = PurePosixPath(os.path.commonpath([name.parent for name in names.values()]) if names else "")
    return {i: str(name.relative_to(folder)) for i, name in names.items()}


def copy_images(found: Annotations, names: dict[int, str], folder: Path, track: Callable[[Iterable], Iterable]) -> None:
    folder.mkdir()
    for image in track(list(found.images.values())):
        file = folder / names[image.id]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content_of(found.place(image)))


def content_of(place: Place) -> bytes:
    try:
        return place.read_bytes()
    except OSError as error:
        told = error.strerror or error
        raise UserError(f"{in_a_line(place)}: cannot be read: {told}; mend or remove it, and its annotations") from error


def as_coco(found: Annotations, names: dict[int, str]) -> dict[str, Any]:
    """The content of a COCO file; `names` are those of the images."""
    return {
        "images": [
            {"id": image.id, "file_name": names[image.id], "width": image.width, "height": image.height}
            for image in found.images.values()
        ],
        "categories": [{"id": i, "name": name} for i, name in found.categories.items()],
        "annotations": [annotation(item) for item in found.objects],
    }


def annotation(item: Object) -> dict[str, Any]:
    """An object as COCO has it. Where its area is not known it is the box's, as in counting, unless a file may not say so."""
    area = item.box[2] * item.box[3] if item.area is None else item.area
    return {
        "id": item.id,
        "image_id": item.image_id,
        "category_id": item.category_id,
        "bbox": list(item.box),
        **({"area": area} if is_area(area) else {}),
        "iscrowd": int(item.crowd),
        **({"ignore": 1} if item.ignore else {}),
    }


def lines(dataset: Dataset, splits: dict[str, Annotations], out: Path) -> list[str]:
    """What was left behind, and a line that says what there is now, made of what, and how to go on."""
    images = " and ".join(f"{len(found.images)} {WORDS[split]}" for split, found in splits.items())
    objects = sum(len(found.objects) for found in splits.values())
    masks = sum(item.mask for found in splits.values() for item in found.objects)
    left = [f"{masks} mask{'s were' if masks > 1 else ' was'} left behind: only boxes are used"] if masks else []
    layouts = " and ".join(dataset.layouts)
    told = f"{out}: {images} images with {objects} objects, from {layouts}; next: dndetr data check {shlex.quote(str(out))}"
    return [*left, told]
