"""COCO's format: the layouts that hold it, and its reader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations, is_id, shown
from dndetr.data.formats.reading import json_of
from dndetr.data.formats.source import SPLITS, Source, Sources, called, folders_with, one_of
from dndetr.data.locate import find_images
from dndetr.data.store import Place, Store, is_file, is_folder, join


def coco_folders(store: Store) -> Sources:
    """COCO 2017's layout, the plain one, and CVAT's export, whose images lie one folder further down."""
    subsets = {join("annotations", name): name[len("instances_") : -len(".json")] for name in instances(store)}
    sources = {}
    for split in SPLITS:
        files = [file for name in called(subsets.values(), split) for file in subsets if subsets[file] == name]
        if file := one_of(store, files, f"the {split} split"):
            sources[split] = coco_source(store, file, subsets[file])
    if not sources and (file := one_of(store, list(subsets), "the annotations")):
        sources["train"] = coco_source(store, file, subsets[file])
    return sources


def instances(store: Store) -> list[str]:
    return [name for name in store.listing("annotations") if name.startswith("instances_") and name.endswith(".json")]


def coco_source(store: Store, file: str, subset: str) -> Source:
    folders = (subset, subset.lower(), join("images", subset), join("images", subset.lower()), "images")
    folder = next((folder for folder in folders if is_folder(store, folder)), None)
    if folder is None:
        told = f"its images are not there: no folder {store.place(subset)}"
        return Source("COCO", file, store, lambda found: found.add(kinds.NO_SPLIT, told))
    plain = "COCO 2017's layout" if subset.endswith("2017") else "the plain COCO layout"
    layout = "CVAT's COCO export" if folder.startswith("images") else plain
    return coco_at(store, file, folder, layout)


def roboflow(store: Store) -> Sources:
    return coco_beside(store, "_annotations.coco.json", "Roboflow's COCO export")


def fiftyone(store: Store) -> Sources:
    return coco_beside(store, "labels.json", "FiftyOne's COCO export", images="data")


def label_studio(store: Store) -> Sources:
    """Its file names begin with the folder images/."""
    return coco_beside(store, "result.json", "Label Studio's COCO export", needs="images")


def coco_beside(store: Store, name: str, layout: str, images: str = "", needs: str = "") -> Sources:
    """A COCO file in the folder of each split, or alone at the root; its images in that folder or in `images` below it."""

    def has(folder: str) -> bool:
        return is_file(store, join(folder, name)) and is_folder(store, join(folder, images or needs))

    folders = folders_with(store, layout, has) or ({"train": ""} if has("") else {})
    return {split: coco_at(store, join(folder, name), join(folder, images), layout) for split, folder in folders.items()}


def lvis(store: Store) -> Sources:
    names = {split: f"annotations/lvis_v1_{split}.json" for split in SPLITS}
    return {split: coco_at(store, name, "", "LVIS") for split, name in names.items() if is_file(store, name)}


def objects365(store: Store) -> Sources:
    sources = {}
    for split in SPLITS:
        for name in (f"annotations/zhiyuan_objv2_{split}.json", f"annotations/objects365_{split}.json"):
            if is_file(store, name):
                sources[split] = coco_at(store, name, split, "Objects365")
    return sources


def coco_at(store: Store, name: str, folder: str, layout: str = "COCO", file: Place | None = None) -> Source:
    """A COCO file, `name` in the store or another `file`, whose images should be in `folder`."""
    return Source(layout, name, store, partial(read_coco, folder=folder), file)


def read_coco(found: Annotations, folder: str) -> None:
    """A COCO file whose images lie in `folder`, or near it (see dncli/data/locate.py)."""
    content = json_of(found, found.file)
    if content is None:
        return
    if not isinstance(content, dict):
        found.add(kinds.MALFORMED, 'is not COCO: it must hold an object with "images", "annotations" and "categories"')
        return
    for name in ("images", "categories", "annotations"):
        for place, entry in entries(found, content, name):
            if name == "images" and "file_name" not in entry and isinstance(entry.get("coco_url"), str):
                entry = entry | {"file_name": "/".join(entry["coco_url"].split("/")[-2:])}  # LVIS has no other name
            found.take(name, entry, place)
    find_images(found, folder)


def entries(found: Annotations, content: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list that are objects with an id, each with its place in the file."""
    if name not in content:
        found.add(kinds.MISSING_KEY, f'has no "{name}"')
        return
    if not isinstance(content[name], list):
        found.add(kinds.WRONG_TYPE, f'"{name}" must be a list, got {shown(content[name])}')
        return
    for i, entry in enumerate(content[name]):
        place = f"{name}[{i}]"
        if not isinstance(entry, dict):
            found.add(kinds.WRONG_TYPE, f"{place} must be an object, got {shown(entry)}")
        elif "id" not in entry:
            found.add(kinds.MISSING_KEY, f'{place} has no "id"')
        elif not is_id(entry["id"]):
            found.add(kinds.WRONG_TYPE, f"{place}: id must be a whole number, got {shown(entry['id'])}")
        else:
            yield place, entry
