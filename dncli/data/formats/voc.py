"""Pascal VOC: an XML file an image."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePosixPath

from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations
from dndetr.data.formats.pages import Page, Shape, take_pages
from dndetr.data.formats.reading import numbers_of, text_of, xml_of
from dndetr.data.formats.source import (
    SPLITS,
    Reader,
    Source,
    Sources,
    all_but,
    called,
    folders_with,
    lines_in,
    one_of,
    pictures_below,
    pictures_in,
)
from dndetr.data.store import Place, Store, is_file, is_folder, join


def pascal_voc(store: Store) -> Sources:
    """JPEGImages/, Annotations/ and ImageSets/Main/, also in VOCdevkit/VOC2007; or, by Roboflow, XML beside images."""
    here = [""] + [join(base, name) for base in ("", "VOCdevkit") for name in store.listing(base) if re.match(r"VOC\d", name)]
    bases = [base for base in here if all(is_folder(store, join(base, name)) for name in ("Annotations", "JPEGImages"))]
    base = one_of(store, bases, "the dataset")
    if base is None:
        folders = folders_with(store, "XML files", lambda folder: any(n.endswith(".xml") for n in store.listing(folder)))
        images = {split: pictures_in(store, folder) for split, folder in folders.items()}
        return voc_sources(store, folders, images, lambda image: str(PurePosixPath(image).with_suffix(".xml")), [])
    pictures = {PurePosixPath(name).stem: name for name in pictures_below(store, join(base, "JPEGImages"))}
    folder, xml = join(base, "ImageSets/Main"), join(base, "Annotations")
    lists = [name[: -len(".txt")] for name in store.listing(folder) if name.endswith(".txt")]
    names = {split: one_of(store, called(lists, split), f"the {split} split") for split in SPLITS}
    names = {split: join(folder, f"{name}.txt") for split, name in names.items() if name}
    images = {
        split: sorted(pictures.get(stem, join(base, "JPEGImages", f"{stem}.jpg")) for stem in stems_of(store, name))
        for split, name in names.items()
    } or {"train": sorted(pictures.values())}
    return voc_sources(
        store,
        names or {"train": xml},
        images,
        lambda image: join(xml, f"{PurePosixPath(image).stem}.xml"),
        voc_classes(store, base),
    )


def stems_of(store: Store, name: str) -> list[str]:
    """The images of a list; a second column says whether a class is there."""
    return list(dict.fromkeys(PurePosixPath(line.split()[0]).name for line in lines_in(store, name)))


def voc_sources(
    store: Store,
    names: dict[str, str],
    images: dict[str, list[str]],
    file_of: Callable[[str], str],
    classes: Sequence[str],
) -> Sources:
    def read(split: str) -> Reader:
        beside = all_but(split, images)
        return partial(read_voc, images=images[split], file_of=file_of, classes=classes, beside=beside)

    return {split: Source("Pascal VOC", name, store, read(split)) for split, name in names.items()}


def voc_classes(store: Store, base: str) -> list[str]:
    """The classes of CVAT's labelmap.txt, `name:color:parts:actions`, if it is there."""
    if not is_file(store, join(base, "labelmap.txt")):
        return []
    lines = lines_in(store, join(base, "labelmap.txt"))
    names = [line.split(":")[0].strip() for line in lines if not line.startswith("#")]
    return [name for name in names if name != "background"]


def read_voc(
    found: Annotations,
    images: Sequence[str],
    file_of: Callable[[str], str],
    classes: Sequence[str],
    beside: Sequence[str] = (),
) -> None:
    """Pascal VOC: an XML file an image, `file_of` its name. Pixels count from 1, and the last one is inside of the box.

    So a box begins at xmin - 1 and ends at xmax, and its width is xmax - xmin + 1. Objects marked `difficult` are not to be
    taught. Parts of objects are passed over.
    """
    found.remarks.append("boxes of Pascal VOC are read as pixels from 1: from xmin - 1 to xmax")
    take_pages(found, images, file_of, voc_page, classes, beside, "XML file")


def voc_page(found: Annotations, place: Place) -> Page:
    root = xml_of(found, place)
    if root is None:
        return Page(None, [])
    size = numbers_of(root.find("size"), "width", "height")
    shapes = []
    for number, item in enumerate(root.findall("object"), start=1):
        name, corners = text_of(item, "name"), numbers_of(item.find("bndbox"), "xmin", "ymin", "xmax", "ymax")
        if corners is None or not name:
            told = "must have a name, and in bndbox the numbers xmin, ymin, xmax and ymax"
            found.add(kinds.WRONG_TYPE, f"object {number} ({name}): {told}")
            continue
        x0, y0, x1, y1 = corners
        shapes.append(Shape(f"object {number}", name, (x0 - 1, y0 - 1, x1, y1), text_of(item, "difficult") == "1"))
    return Page((int(size[0]), int(size[1])) if size and min(size) > 0 else None, shapes)
