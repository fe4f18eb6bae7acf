"""`shapes`: a generated dataset in COCO format, of coloured figures that overlap on textured ground.

Classes differ by form alone: colour, texture, size and rotation are drawn alike for all of them. Everything of an image
comes from (seed, split, number), so that the same seed gives the same files, byte for byte.
"""

from __future__ import annotations

import colorsys
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dndetr.console import UserError, say
from dndetr.files import new_folder
from dndetr.models.cache import cache_folder

VERSION = 1  # of the drawing: another one is another dataset
CATEGORIES = {1: "circle", 2: "square", 4: "triangle", 7: "star", 11: "cross", 16: "ring"}  # gaps, as in COCO
SIDES = (0.09, 0.62)  # longer side of a figure, as a share of the image's
COUNTS = (0.03, 0.10, 0.15, 0.18, 0.17, 0.14, 0.10, 0.08, 0.05)  # probability of trying to place 0 .. 8 figures
VISIBLE = 0.4  # share of every figure that the later ones must leave in sight
FINE = 4  # figures are drawn so many times larger, for smooth edges and boxes of a quarter pixel


class Figure(NamedTuple):
    category: int
    mask: Image.Image  # (FINE * size, FINE * size), 255 where it is, before anything covers it


def make_shapes(out: str | Path, *, train: int = 2000, val: int = 200, size: int = 96, seed: int = 0) -> None:
    """Write the dataset to the folder `out`: train/, val/ and annotations/ (28 MB with these numbers).

    The folder appears when it is complete. Raises UserError where it holds files already or cannot be written.
    """
    out = Path(out)
    if train < 1 or val < 1 or size < 32 or seed < 0:
        raise UserError(
            f"shapes need an image or more, 32 pixels or more and a seed of 0 or more, got {train=} {val=} {size=} {seed=}"
        )
    with new_folder(out) as draft:
        (draft / "annotations").mkdir()
        for number, (split, images) in enumerate({"train": train, "val": val}.items()):
            (draft / split).mkdir()
            content = json.dumps(write_split(draft / split, images, size, (seed, number)))
            (draft / "annotations" / f"instances_{split}.json").write_text(content)


def shapes_root(**parameters: int) -> Path:
    """The folder of the generated dataset, made on first use; `parameters` are those of `make_shapes`.

    It lies in the cache (models/cache.py). Several processes may ask at once.
    """
    values = {"train": 2000, "val": 200, "size": 96, "seed": 0} | parameters
    name = "-".join(["shapes", f"v{VERSION}", *(f"{key}{value}" for key, value in values.items())])
    root = cache_folder() / name
    if not root.is_dir():
        say(f"making the shapes dataset in {root}: once, in some 20 seconds")
        try:
            make_shapes(root, **values)
        except UserError as error:
            if not root.is_dir():  # else another process was faster
                raise UserError(*error.lines, "set DNDETR_CACHE to a folder that can be written to") from error
    return root


def write_split(folder: Path, images: int, size: int, key: tuple[int, int]) -> dict[str, Any]:
    """Draw `images` pictures into `folder` and return their annotations."""
    records, annotations = [], []
    for i in range(1, images + 1):
        picture, objects = draw_image(np.random.default_rng((*key, i)), size)
        name = f"{i:06d}.jpg"
        picture.save(folder / name, quality=95, subsampling=0)
        records.append({"id": i, "file_name": name, "width": size, "height": size})
        annotations += [{"id": len(annotations) + k, "image_id": i, **item} for k, item in enumerate(objects, start=1)]
    return {
        "info": {"description": f"dndetr shapes, version {VERSION}, seed {key[0]}", "version": str(VERSION)},
        "licenses": [],
        "images": records,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "shape"} for i, name in CATEGORIES.items()],
    }


def draw_image(rng: np.random.Generator, size: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """One picture and its objects: category, bbox and area of what is visible of each."""
    figures, owner = place_figures(rng, size)
    canvas = ground(rng, size)
    for figure in figures:
        paint(canvas, figure.mask, rng)
    objects = [measure(figure.category, visible(owner, number)) for number, figure in enumerate(figures, start=1)]
    return Image.fromarray(canvas.clip(0, 255).round().astype(np.uint8)), objects


def place_figures(rng: np.random.Generator, size: int) -> tuple[list[Figure], Image.Image]:
    """Figures from back to front, and which of them (1 ..) owns each fine pixel; 0 is the ground."""
    figures: list[Figure] = []
    areas: list[int] = []
    owner = Image.new("L", (size * FINE, size * FINE))
    wanted = rng.choice(len(COUNTS), p=COUNTS)
    for _ in range(3 * wanted):
        if len(figures) == wanted:
            break
        category = int(rng.choice(list(CATEGORIES)))
        side = size * math.exp(rng.uniform(*np.log(SIDES)))
        center = rng.uniform(0.35 * side, size - 0.35 * side, 2)
        mask = form_mask(CATEGORIES[category], center, side, rng.uniform(0, 2 * math.pi), size)
        covered = owner.copy()
        covered.paste(len(figures) + 1, mask=mask)
        seen = covered.histogram()[1 : len(figures) + 2]
        if all(visible >= VISIBLE * area for visible, area in zip(seen, areas, strict=False)):
            figures.append(Figure(category, mask))
            areas.append(seen[-1])
            owner = covered
    return figures, owner


def form_mask(form: str, center: np.ndarray, side: float, angle: float, size: int) -> Image.Image:
    """Fine mask of a form, turned by `angle`, whose longer side measures `side` pixels."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = OUTLINES[form] @ turn.T
    low, high = points.min(axis=0), points.max(axis=0)
    points = ((points - (low + high) / 2) / (high - low).max() * side + center) * FINE
    mask = Image.new("L", (size * FINE, size * FINE))
    draw = ImageDraw.Draw(mask)
    draw.polygon([tuple(point) for point in points], fill=255)
    if form == "ring":
        hole = (points - center * FINE) * 0.55 + center * FINE
        draw.polygon([tuple(point) for point in hole], fill=0)
    return mask


def polar(radii: list[float]) -> np.ndarray:
    """A closed outline from its distances to the middle, at equal angles."""
    angles = np.arange(len(radii)) * 2 * math.pi / len(radii)
    return np.array(radii)[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)


ARM, TIP = 0.34, 1.0  # half the width and the length of a cross's arms
OUTLINES = {
    "circle": polar([1.0] * 64),
    "ring": polar([1.0] * 64),
    "square": polar([1.0] * 4),
    "triangle": polar([1.0] * 3),
    "star": polar([1.0, 0.42] * 5),
    "cross": np.array(
        [(TIP, ARM), (ARM, ARM), (ARM, TIP), (-ARM, TIP), (-ARM, ARM), (-TIP, ARM)]
        + [(-TIP, -ARM), (-ARM, -ARM), (-ARM, -TIP), (ARM, -TIP), (ARM, -ARM), (TIP, -ARM)]
    ),
}


def visible(owner: Image.Image, number: int) -> Image.Image:
    """Fine mask of what one figure owns."""
    return owner.point([255 * (value == number) for value in range(256)])


def measure(category: int, mask: Image.Image) -> dict[str, Any]:
    """bbox and area, in pixels, of a fine mask."""
    left, top, right, bottom = mask.getbbox()
    box = [left / FINE, top / FINE, (right - left) / FINE, (bottom - top) / FINE]
    return {"category_id": category, "bbox": box, "area": mask.histogram()[255] / FINE**2, "iscrowd": 0}


def ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float32: soft clouds of muted colours, with a grain."""
    base = colour(rng, saturation=(0.05, 0.35), value=(0.25, 0.85))
    clouds = sum(smooth(rng.normal(0, spread, (cells, cells, 3)), size) for cells, spread in ((3, 20), (9, 9), (30, 5)))
    return (base + clouds + rng.normal(0, rng.uniform(1, 6), (size, size, 1))).astype(np.float32)


def smooth(values: np.ndarray, size: int) -> np.ndarray:
    """(n, n, 3) to (size, size, 3), interpolated."""
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in values.transpose(2, 0, 1)]
    return np.stack([np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)) for plane in planes], axis=2)


def paint(canvas: np.ndarray, mask: Image.Image, rng: np.random.Generator) -> None:
    """Lay a figure on the canvas, in place: its shadow, then two tones of a colour that stands out from what lies below."""
    cover = mask.reduce(FINE)
    shadow = np.asarray(cover.filter(ImageFilter.GaussianBlur(1.6)), dtype=np.float32)[..., None] / 255
    alpha = np.asarray(cover, dtype=np.float32)[..., None] / 255
    below = np.tensordot(alpha[..., 0], canvas, 2) / alpha.sum()
    tone = max((colour(rng, (0.5, 1.0), (0.45, 1.0)) for _ in range(4)), key=lambda c: np.abs(c - below).sum())
    two_tones = tone * (1 - 0.35 * texture(rng, len(canvas))[..., None])
    canvas *= 1 - 0.4 * shadow
    canvas += alpha * (two_tones - canvas)


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size) float32 in [0, 1]: plain, stripes, checks, or a slope of light."""
    kind, angle, period = rng.integers(4), rng.uniform(0, 2 * math.pi), rng.uniform(5, 11)
    across = np.arange(size, dtype=np.float32)
    x, y = across * np.float32(math.cos(angle)), across * np.float32(math.sin(angle))
    u, v = x + y[:, None], x[:, None] - y
    if kind == 0:
        return np.zeros((size, size), dtype=np.float32)
    if kind == 1:
        return 0.5 + 0.5 * np.tanh(3 * np.sin(2 * math.pi / period * u))
    if kind == 2:
        return 0.5 + 0.5 * np.tanh(3 * np.sin(2 * math.pi / period * u) * np.sin(2 * math.pi / period * v))
    return (u - u.min()) / (u.max() - u.min())


def colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    hsv = rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv), dtype=np.float32)
