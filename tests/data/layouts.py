"""Writes a dataset in the layouts that people have, as the tools that are named write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import yaml
from PIL import Image

SPLITS = ("train", "val")
CLASSES = ("saw", "axe", "nut")  # not in the alphabet's order
Writer = Callable[[Path, Path], list[str]]  # from the plain layout to another; returns the settings that name the result


def write_plain(root: Path, train: int = 10, val: int = 6, width: int = 40, height: int = 32) -> Path:
    """The plain COCO layout: coloured rectangles, some images without any, numbered as formats without numbers are."""
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        rng = np.random.default_rng(len(split))
        images, annotations = [], []
        for i in range(1, count + 1):
            pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for _ in range(i % 4):
                label, (x, y), (w, h) = int(rng.integers(3)), rng.integers(0, 20, 2).tolist(), rng.integers(6, 12, 2).tolist()
                pixels[y : y + h, x : x + w, label] = 220
                entry = {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "bbox": [x, y, w, h]}
                annotations.append(entry | {"area": w * h, "iscrowd": 0})
            name = f"{split}-{i:03d}.png"
            Image.fromarray(pixels).save(root / split / name)
            images.append({"id": i, "file_name": name, "width": width, "height": height})
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
        write_json(
            root / "annotations" / f"instances_{split}.json",
            {"images": images, "annotations": annotations, "categories": categories},
        )
    return root


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def splits_of(root: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(split, json.loads((root / "annotations" / f"instances_{split}.json").read_text())) for split in SPLITS]


def objects_of(content: dict[str, Any], image: dict[str, Any]) -> list[tuple[str, list[float]]]:
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [(names[a["category_id"]], a["bbox"]) for a in content["annotations"] if a["image_id"] == image["id"]]


def copy_images(root: Path, split: str, to: Path) -> None:
    shutil.copytree(root / split, to, dirs_exist_ok=True)


def plain(root: Path, out: Path) -> list[str]:
    shutil.copytree(root, out)
    return [f"data.root={out}"]


def coco_2017(root: Path, out: Path) -> list[str]:
    for split, content in splits_of(root):
        copy_images(root, split, out / f"{split}2017")
        write_json(out / "annotations" / f"instances_{split}2017.json", content)
    return [f"data.root={out}"]


def roboflow(root: Path, out: Path) -> list[str]:
    """With the category that groups the others."""
    for split, content in splits_of(root):
        folder = out / {"train": "train", "val": "valid"}[split]
        copy_images(root, split, folder)
        grouping = {"id": 0, "name": "things", "supercategory": "none"}
        content["categories"] = [grouping, *(c | {"supercategory": "things"} for c in content["categories"])]
        write_json(folder / "_annotations.coco.json", content)
    return [f"data.root={out}"]


def cvat_coco(root: Path, out: Path) -> list[str]:
    for split, content in splits_of(root):
        subset = {"train": "Train", "val": "Validation"}[split]
        copy_images(root, split, out / "images" / subset)
        write_json(out / "annotations" / f"instances_{subset}.json", content)
    return [f"data.root={out}"]


def label_studio(root: Path, out: Path) -> list[str]:
    """File names with folders before them, as Windows writes them."""
    for split, content in splits_of(root):
        copy_images(root, split, out / split / "images")
        for image in content["images"]:
            image["file_name"] = f"images\\{image['file_name']}"
        write_json(out / split / "result.json", content)
    return [f"data.root={out}"]


def fiftyone(root: Path, out: Path) -> list[str]:
    for split, content in splits_of(root):
        folder = out / {"train": "train", "val": "validation"}[split]
        copy_images(root, split, folder / "data")
        write_json(folder / "labels.json", content)
    return [f"data.root={out}"]


def yolo(root: Path, out: Path) -> list[str]:
    """Images without objects have no label file; paths are as Roboflow writes them."""
    for split, content in splits_of(root):
        copy_images(root, split, out / split / "images")
        (out / split / "labels").mkdir()
        names = [category["name"] for category in content["categories"]]
        for image in content["images"]:
            rows = []
            for name, (x, y, w, h) in objects_of(content, image):
                shares = (x + w / 2) / image["width"], (y + h / 2) / image["height"], w / image["width"], h / image["height"]
                rows.append(f"{names.index(name)} {' '.join(map(repr, shares))}\n")
            if rows:
                (out / split / "labels" / Path(image["file_name"]).with_suffix(".txt")).write_text("".join(rows))
        content = {"train": "../train/images", "val": "../val/images", "nc": len(names), "names": names}
        (out / "data.yaml").write_text(yaml.safe_dump(content))
    return [f"data.root={out}"]


def voc(root: Path, out: Path) -> list[str]:
    """Pixels from 1, both ends inside; the classes in CVAT's labelmap.txt."""
    for folder in ("Annotations", "ImageSets/Main"):
        (out / folder).mkdir(parents=True)
    for split, content in splits_of(root):
        copy_images(root, split, out / "JPEGImages")
        stems = [Path(image["file_name"]).stem for image in content["images"]]
        (out / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for image, stem in zip(content["images"], stems, strict=True):
            objects = [
                f"<object><name>{escape(name)}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                for name, (x, y, w, h) in objects_of(content, image)
            ]
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{image['file_name']}</filename>{size}{''.join(objects)}</annotation>"
            (out / "Annotations" / f"{stem}.xml").write_text(text)
        names = [category["name"] for category in content["categories"]]
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", *(f"{name}:1,2,3::" for name in names)]
    (out / "labelmap.txt").write_text("\n".join(lines) + "\n")
    return [f"data.root={out}"]


def labelme(root: Path, out: Path) -> list[str]:
    """Rectangles by two corners in any order; the classes in labels.txt."""
    for split, content in splits_of(root):
        copy_images(root, split, out / split)
        for image in content["images"]:
            shapes = [
                {"label": name, "points": [[x + w, y], [x, y + h]], "shape_type": "rectangle", "group_id": None, "flags": {}}
                for name, (x, y, w, h) in objects_of(content, image)
            ]
            about = {"imagePath": f"..\\{image['file_name']}", "imageData": None}
            size = {"imageHeight": image["height"], "imageWidth": image["width"]}
            file = (out / split / image["file_name"]).with_suffix(".json")
            write_json(file, {"version": "5.0.1", "flags": {}, "shapes": shapes, **about, **size})
        names = [category["name"] for category in content["categories"]]
    (out / "labels.txt").write_text("\n".join(["__ignore__", "_background_", *names]) + "\n")
    return [f"data.root={out}"]


def named(root: Path, out: Path) -> list[str]:
    """Two COCO files and one folder of images."""
    for split, content in splits_of(root):
        copy_images(root, split, out / "pictures")
        write_json(out / f"my-{split}.json", content)
    return [f"data.train={out}/my-train.json", f"data.val={out}/my-val.json", f"data.images={out}/pictures"]


def cvat_xml(root: Path, out: Path) -> list[str]:
    images = []
    for split, content in splits_of(root):
        subset = {"train": "Train", "val": "Validation"}[split]
        copy_images(root, split, out / "images" / subset)
        for image in content["images"]:
            boxes = [
                f'<box label="{escape(name)}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" occluded="0"/>'
                for name, (x, y, w, h) in objects_of(content, image)
            ]
            about = f'name="{image["file_name"]}" subset="{subset}" width="{image["width"]}" height="{image["height"]}"'
            images.append(f'<image id="{len(images)}" {about}>{"".join(boxes)}</image>')
        labels = "".join(f"<label><name>{escape(category['name'])}</name></label>" for category in content["categories"])
    meta = f"<meta><project><labels>{labels}</labels></project></meta>"
    (out / "annotations.xml").write_text(f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>")
    return [f"data.root={out}"]


def metadata(root: Path, out: Path) -> list[str]:
    """Hugging Face's imagefolder; its classes are numbers."""
    for split, content in splits_of(root):
        folder = out / {"train": "train", "val": "validation"}[split]
        copy_images(root, split, folder)
        names = [category["name"] for category in content["categories"]]
        rows = []
        for image in content["images"]:
            objects = objects_of(content, image)
            listed = {"bbox": [box for _, box in objects], "categories": [names.index(name) for name, _ in objects]}
            rows.append(json.dumps({"file_name": image["file_name"], "objects": listed}) + "\n")
        (folder / "metadata.jsonl").write_text("".join(rows))
    return [f"data.root={out}"]


# By the words of the header.
WRITERS: dict[str, Writer] = {
    "the plain COCO layout": plain,
    "COCO 2017's layout": coco_2017,
    "Roboflow's COCO export": roboflow,
    "CVAT's COCO export": cvat_coco,
    "Label Studio's COCO export": label_studio,
    "FiftyOne's COCO export": fiftyone,
    "YOLO": yolo,
    "Pascal VOC": voc,
    "LabelMe": labelme,
    "COCO files that were named": named,
    "CVAT's XML": cvat_xml,
    "metadata.jsonl": metadata,
}
