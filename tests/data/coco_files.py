"""Small datasets in COCO format, written as a test describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from dndetr.config import DataConfig
from dndetr.data.layouts import Dataset, find_dataset

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def at(root: Path | str) -> Dataset:
    """The dataset that lies there."""
    return find_dataset(DataConfig(root=str(root)))


def image(i: int, width: int = 40, height: int = 20, **other: Any) -> dict[str, Any]:
    return {"id": i, "file_name": f"{i}.png", "width": width, "height": height, **other}


def item(i: int, image_id: int, box: list[float], category: int = 3, **other: Any) -> dict[str, Any]:
    entry = {"id": i, "image_id": image_id, "category_id": category, "bbox": box, "area": 1.0, "iscrowd": 0}
    return entry | other


def write_split(
    root: Path,
    split: str,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]] = CATEGORIES,
) -> Path:
    """Write the annotations, and a grey picture for each image whose name and size allow it; returns the root."""
    (root / split).mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_annotations(root, split, json.dumps(content))
    for entry in images:
        name, size = str(entry.get("file_name", "")), (entry.get("width"), entry.get("height"))
        if name.endswith(".png") and ".." not in name and all(isinstance(side, int) and side > 0 for side in size):
            Image.new("RGB", size, "grey").save(root / split / name)
    return root


def write_annotations(root: Path, split: str, text: str) -> Path:
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file
