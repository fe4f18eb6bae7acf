"""CVAT's own format, CVAT for images: one XML file."""

from __future__ import annotations

import math
import re
from functools import partial
from xml.etree import ElementTree

from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations, shown
from dndetr.data.formats.labelme import corners_of
from dndetr.data.formats.reading import Box, take_classes, take_object, text_of, xml_of
from dndetr.data.formats.source import SPLITS, Source, Sources, called, one_of
from dndetr.data.locate import find_images
from dndetr.data.store import Store, is_file, is_folder, join


def cvat_xml(store: Store) -> Sources:
    """CVAT for images: annotations.xml, in which images may be of several subsets."""
    name = "annotations.xml"
    if not is_file(store, name):
        return {}
    told = re.findall(rb'\ssubset="([^"]*)"', store.place(name).read_bytes())
    subsets = {value.decode("utf-8", "replace") for value in told}
    folder = "images" if is_folder(store, "images") else ""
    sources = {}
    for split in SPLITS:
        if subset := one_of(store, called(subsets, split), f"the {split} split"):
            inner = next((f for f in (join(folder, subset), folder) if is_folder(store, f)), folder)
            sources[split] = Source("CVAT's XML", name, store, partial(read_cvat, folder=inner, subset=subset))
    return sources or {"train": Source("CVAT's XML", name, store, partial(read_cvat, folder=folder, subset=None))}


def read_cvat(found: Annotations, folder: str, subset: str | None) -> None:
    """CVAT for images 1.1: one XML file, boxes in pixels from 0. Of several subsets only the images of `subset`."""
    root = xml_of(found, found.file)
    if root is None:
        return
    number_of = take_classes(found, [text_of(label, "name") for label in root.iter("label") if label.find("name") is not None])
    turned = 0
    for image in root.findall("image"):
        identity, name = len(found.listed["images"]) + 1, image.get("name", "")
        if subset is not None and image.get("subset", subset) != subset:
            continue
        size = [int(image.get(side, 0)) if image.get(side, "").isdigit() else image.get(side) for side in ("width", "height")]
        entry = {"id": identity, "file_name": name, "width": size[0], "height": size[1]}
        found.take("images", entry, f"image {shown(name)}")
        for shape in image:
            if shape.tag not in ("box", "polygon", "mask", "ellipse"):
                continue
            place, label = f"image {shown(name)}, {shape.tag} {shown(shape.get('label'))}", shape.get("label")
            turned += float(shape.get("rotation") or 0) != 0
            corners = cvat_corners(shape)
            if corners is None:
                found.add(kinds.WRONG_TYPE, f"{place}: must have numbers for its corners", identity)
            elif label not in number_of:
                found.add(kinds.UNKNOWN_CATEGORY, f"{place}: is none of the labels", identity)
            else:
                take_object(found, identity, number_of[label], corners, place)
    if turned:
        found.remarks.append(f"of rotated boxes, {turned}, the upright extent is taken")
    find_images(found, folder)


def cvat_corners(shape: ElementTree.Element) -> Box | None:
    """The upright extent of a shape."""
    try:
        values = {key: float(value) for key, value in shape.attrib.items() if key in CVAT_NUMBERS and value}
        if shape.tag == "box":
            corners = values["xtl"], values["ytl"], values["xbr"], values["ybr"]
        elif shape.tag == "mask":
            x, y = values["left"], values["top"]
            corners = x, y, x + values["width"], y + values["height"]
        elif shape.tag == "ellipse":
            x, y, rx, ry = (values[key] for key in ("cx", "cy", "rx", "ry"))
            corners = x - rx, y - ry, x + rx, y + ry
        else:
            points = [[float(v) for v in point.split(",")] for point in shape.get("points", "").split(";")]
            return corners_of(points, "polygon")
    except (KeyError, ValueError):
        return None
    return turned_extent(corners, values.get("rotation", 0.0))


CVAT_NUMBERS = {"xtl", "ytl", "xbr", "ybr", "left", "top", "width", "height", "cx", "cy", "rx", "ry", "rotation"}


def turned_extent(corners: Box, degrees: float) -> Box:
    """The upright box around one that is rotated about its centre."""
    if not degrees:
        return corners
    x0, y0, x1, y1 = corners
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    half = ((x1 - x0) * cos + (y1 - y0) * sin) / 2, ((x1 - x0) * sin + (y1 - y0) * cos) / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - half[0], y - half[1], x + half[0], y + half[1]
