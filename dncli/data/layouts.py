"""Which layout a dataset has: looked for in the order of `LAYOUTS`, the first one wins."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data.annotations import Annotations, find_twins, leave_out_groups
from dndetr.data.augment import image_generator
from dndetr.data.formats.coco import coco_at, coco_folders, fiftyone, label_studio, lvis, objects365, roboflow
from dndetr.data.formats.cvat import cvat_xml
from dndetr.data.formats.labelme import labelme
from dndetr.data.formats.metadata import metadata
from dndetr.data.formats.source import SPLITS, Sources
from dndetr.data.formats.voc import pascal_voc
from dndetr.data.formats.yolo import yolo
from dndetr.data.store import Store, Within, is_folder, join, open_store

LAYOUTS = (
    coco_folders, roboflow, fiftyone, label_studio, lvis, objects365, yolo, pascal_voc, cvat_xml, labelme, metadata,
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """A dataset that was found."""

    root: Path
    sources: Sources
    holdout: float = 0.0  # share of the training images that make the validation split, where the data have none
    seed: int = 0
    exif: str = "apply"  # data.exif
    crowds: str = "ignore"  # data.crowds

    @property
    def line(self) -> str:
        """Which layout it was taken for, and from which files."""
        files = " and ".join(dict.fromkeys(str(source.file or source.name) for source in self.sources.values()))
        held = f"; {self.holdout:g} of the images held out for validation" if self.holdout else ""
        return f"{self.root}, {' and '.join(self.layouts)}: {files}{held}"

    @property
    def layouts(self) -> list[str]:
        """What it was taken for: one layout, as a rule."""
        return list(dict.fromkeys(source.layout for source in self.sources.values()))

    @property
    def splits(self) -> list[str]:
        """Which of train and val there are."""
        there = {*self.sources, *(("val",) if self.holdout and "train" in self.sources else ())}
        return [split for split in SPLITS if split in there]

    def annotations(self, split: str) -> Annotations:
        """What is usable of a split, and its defects. Raises UserError where there is no such split."""
        name = "train" if self.holdout else split
        if name not in self.sources:
            raise UserError(f"{self.root}: {self.missing(split)}")
        found = self.read(name)
        leave_out_groups(found, lambda: self.used_outside(name))
        find_twins(found)
        if self.holdout and len(found.images) == 1:
            raise UserError(f"{self.root}: has one image, and data.holdout needs two or more to share out")
        if self.holdout and found.images:
            keep(found, self.held_out(found) if split == "val" else set(found.images) - self.held_out(found))
        return found

    def read(self, name: str) -> Annotations:
        found = self.sources[name].annotations(self.exif)
        if self.crowds == "objects":
            found.objects = [replace(item, crowd=False) for item in found.objects]
        return found

    def used_outside(self, name: str) -> set[int]:
        """The categories that have objects in other sources than this one."""
        others = (self.read(other) for other in self.sources if other != name)
        return {item.category_id for found in others for item in found.objects}

    def held_out(self, found: Annotations) -> set[int]:
        """The ids of the images that the seed draws for validation: an image or more, and not all."""
        ids = sorted(found.images)
        order = torch.randperm(len(ids), generator=image_generator(self.seed, 0, -1, "holdout")).tolist()
        return {ids[i] for i in order[: min(max(1, round(self.holdout * len(ids))), len(ids) - 1)]}

    def missing(self, split: str) -> str:
        there = ", ".join(source.name or str(source.file) for source in self.sources.values())
        if split == "val" and "train" in self.sources:
            how = "data.holdout=0.1 takes a tenth of the images for it, data.val=FILE data.images=DIR names one"
            return f"has no validation split, only {there}; {how}"
        return f"has no {'training' if split == 'train' else 'validation'} split, only {there}"


def keep(found: Annotations, ids: set[int]) -> None:
    """Leave some of the images, with their objects."""
    found.images = {i: image for i, image in found.images.items() if i in ids}
    found.objects = [item for item in found.objects if item.image_id in ids]
    found.defects = [defect for defect in found.defects if defect.image_id is None or defect.image_id in ids]


def find_dataset(data: DataConfig, seed: int = 0) -> Dataset:
    """The dataset that the settings mean: named files, or what lies under `data.root`, a folder, a .zip or `shapes`.

    `seed` draws the images that data.holdout takes. Raises UserError that says what was looked for.
    """
    if data.train or data.val:
        root, sources = named(data)
    else:
        root = resolve_root(data.root)
        sources = look(open_store(root), root)
    if data.holdout and "val" in sources:
        raise UserError(f"{root}: has a validation split, {sources['val'].name}: set data.holdout=0, or name the files")
    return Dataset(root, sources, data.holdout, seed, data.exif, data.crowds)


def resolve_root(config_root: str) -> Path:
    """What `data.root` means: a path, or `shapes` for the generated dataset, which is made if need be."""
    if config_root == "shapes":
        from dndetr.data.shapes import shapes_root

        return shapes_root()
    return Path(os.path.expanduser(config_root))


def named(data: DataConfig) -> tuple[Path, Sources]:
    """COCO files that data.train and data.val name, with the images in data.images."""
    if not data.images:
        raise UserError("data.train and data.val name COCO files: data.images=DIR must say where their images are")
    images = Path(os.path.expanduser(data.images))
    store, sources = open_store(images), {}
    for split, name in (("train", data.train), ("val", data.val)):
        file = Path(os.path.expanduser(name))
        if name and not os.path.isfile(file):
            raise UserError(f"data.{split}: {file} {'is not a regular file' if os.path.lexists(file) else 'does not exist'}")
        if name:
            sources[split] = coco_at(store, "", "", "COCO files that were named", file)
    return images, sources


def look(store: Store, root: Path) -> Sources:
    """The splits of the first layout that fits, at the root or in the only folder that it holds."""
    shown = [name for name in store.listing() if not name.startswith(".")]
    stores = [store]
    if len(shown) == 1 and is_folder(store, shown[0]):
        stores.append(Within(store, shown[0]))
    for candidate in stores:
        for find in LAYOUTS:
            if sources := find(candidate):
                return sources
    raise UserError(
        f"{root}: holds no dataset in a layout that is known here" + "".join(f"; {hint}" for hint in almost(stores[-1])),
        "COCO has annotations/instances_train.json and instances_val.json beside the image folders train and val; Roboflow's, "
        "CVAT's, Label Studio's and FiftyOne's COCO exports, YOLO's data.yaml, Pascal VOC, LabelMe and others are found too: "
        "see docs/data.md; data.train=FILE data.val=FILE data.images=DIR names COCO files",
    )


def almost(store: Store) -> list[str]:
    """Which layouts are there but for something that they need."""
    names, hints = store.listing(), []
    folders = ["", *(name for name in names if is_folder(store, name))]
    if labels := next((join(f, "labels") for f in folders if is_folder(store, join(f, "labels"))), None):
        hints.append(f"{labels}/ looks like YOLO's, but there is no data.yaml with train, val and names")
    if is_folder(store, "Annotations"):
        hints.append("Annotations/ looks like Pascal VOC's, but there is no JPEGImages/")
    if "result.json" in names:
        hints.append("result.json looks like Label Studio's, but there is no images/: export it with its images")
    files = [join(folder, name) for folder in ("", "annotations") for name in store.listing(folder) if name.endswith(".json")]
    if files and not hints:
        hints.append(f"if {min(files)} is a COCO file, name it with data.train and data.images")
    return hints
