"""What a dataset holds in numbers: how many objects, how large, of which form and class, and how the settings suit them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.markup import escape
from rich.table import Table

from dndetr.analysis.output import say, show, table
from dndetr.config import Config, DataConfig
from dndetr.console import UserError, brief
from dndetr.data.augment import fitted
from dndetr.data.boxes import inside
from dndetr.data.check import SIDES
from dndetr.data.coco import Categories, Split, load_split
from dndetr.data.layouts import Dataset
from dndetr.figures import distribution, finish, panels, save_figure
from dndetr.files import writable
from dndetr.training.prepare import shorten
from dndetr.training.report import MORE_OBJECTS, denoising, model_queries

PIXELS = (8, 16, 32, 64, 128, 256, 512)  # where the rows of a table end, and the next one begins
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
FORMS = (1 / 4, 1 / 2, 2 / 3, 3 / 2, 2, 4)
FORM_NAMES = ("narrower than 1:4", "1:4 to 1:2", "1:2 to 2:3", "2:3 to 3:2", "3:2 to 2:1", "2:1 to 4:1", "wider than 4:1")
TINY = (8, 16, 32)  # pixels: a stride of the finest map of features, its double, and what COCO calls small
ENDS = 10  # classes that are shown of those with the most objects, and of those with the least


@dataclass(frozen=True)
class Measures:
    """What a split holds as a training sees it: I images with M objects, boxes clipped, crowds apart."""

    name: str
    categories: Categories
    images: np.ndarray  # (I, 2) width and height in pixels
    owners: np.ndarray  # (M,) the image of each object, 0 .. I-1
    labels: np.ndarray  # (M,) classes 0 .. C-1
    boxes: np.ndarray  # (M, 2) width and height in pixels
    crowds: int

    @cached_property
    def counts(self) -> np.ndarray:
        """(I,): the objects of each image."""
        return np.bincount(self.owners, minlength=len(self.images))

    @cached_property
    def sides(self) -> np.ndarray:
        """(M,) in pixels: the root of the box's area."""
        return np.sqrt(self.boxes.prod(1))

    @cached_property
    def relative(self) -> np.ndarray:
        """(M,) from 0 to 1: the root of the box's share of its image."""
        return self.sides_in(np.ones_like(self.images))

    @cached_property
    def forms(self) -> np.ndarray:
        """(M,): width by height."""
        return self.boxes[:, 0] / self.boxes[:, 1]

    def sides_in(self, sizes: np.ndarray) -> np.ndarray:
        """(M,) the root of the box's area where images have other `sizes` (I, 2)."""
        return np.sqrt((self.boxes * (sizes / self.images)[self.owners]).prod(1))

    def of_classes(self) -> tuple[np.ndarray, np.ndarray]:
        """(C,) objects, and (C,) images that have such an object."""
        classes = len(self.categories)
        pairs = np.unique(self.owners * classes + self.labels)
        return np.bincount(self.labels, minlength=classes), np.bincount(pairs % classes, minlength=classes)


def stats(dataset: Dataset, config: Config, preset: str, out: Path | None = None) -> list[Measures]:
    """Show what the splits hold, and what it means for the settings, which are those of a `preset` with changes; draw it to
    the file `out`, where one is given. Raises UserError for data that cannot be trained on.
    """
    if out is not None:
        check_out(out)
    every = measure_dataset(dataset)
    say(dataset.line, "")
    show("images and objects", overview(every))
    show("root of the box's area, in pixels", in_pixels(every))
    show("root of the box's share of its image", binned(every, [m.relative for m in every], SHARES, named("{:.0%}", SHARES)))
    show("width to height", binned(every, [m.forms for m in every], FORMS, FORM_NAMES))
    show("classes", classes(every))
    show(f"with {preset}", with_settings(every, config))
    say(*advice(every, config))
    if out is not None:
        with writable(out, "give another file with --out"):
            draw(every, config, out)
        say(f"drawn: {out}")
    return every


def check_out(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: the picture is a PNG; give --out a file that ends in .png")
    if out.exists():
        raise UserError(f"{out}: exists; give a new file with --out")


def measure_dataset(dataset: Dataset) -> list[Measures]:
    """Both splits, or the one that there is; classes are those of the training split, as in a training."""
    splits: list[Split] = []
    for name in dataset.splits:
        splits.append(load_split(dataset, name, splits[0].categories if splits else None))
    return [measure(split) for split in splits]


def measure(split: Split) -> Measures:
    """From the boxes as they are written: a side of 96 pixels must not become 95.99999 by way of shares of the image."""
    place = {image.id: i for i, image in enumerate(split.images)}
    found = []
    for image_id, category, box, _, crowd in zip(*split.written, strict=True):
        image = split.images[place[image_id]]
        if not crowd and (seen := inside(box, image.width, image.height)) is not None:
            found.append((place[image_id], split.categories.labels[category], *seen[2:]))
    rows = np.array(found, dtype=np.float64).reshape(-1, 4)
    return Measures(
        name=split.name,
        categories=split.categories,
        images=np.array([(image.width, image.height) for image in split.images]),
        owners=rows[:, 0].astype(np.int64),
        labels=rows[:, 1].astype(np.int64),
        boxes=rows[:, 2:],
        crowds=int(split.written.crowds.sum()),
    )


def overview(every: Sequence[Measures]) -> Table:
    rows = table("", *(m.name for m in every))
    rows.add_row("images", *(str(len(m.images)) for m in every))
    rows.add_row("  without objects", *(counted(m.counts == 0) for m in every))
    rows.add_row("  wide", *(spread(m.images[:, 0]) for m in every))
    rows.add_row("  high", *(spread(m.images[:, 1]) for m in every))
    rows.add_row("objects", *(str(len(m.labels)) for m in every))
    rows.add_row("  in an image, median", *(f"{np.median(m.counts):g}" for m in every))
    rows.add_row("  in 95 of 100 images at most", *(f"{np.quantile(m.counts, 0.95, method='higher'):g}" for m in every))
    rows.add_row("  in an image at most", *(str(m.counts.max()) for m in every))
    rows.add_row("crowds, which nothing learns", *(str(m.crowds) for m in every))
    return rows


def in_pixels(every: Sequence[Measures]) -> Table:
    """COCO's three sizes, then the histogram."""
    rows, least = table("", *(m.name for m in every)), 0.0
    for name, limit in SIDES.items():
        told = f"{name}, " + (f"below {limit}" if math.isfinite(limit) else f"from {least:g}")
        rows.add_row(told, *(counted((m.sides >= least) & (m.sides < limit)) for m in every))
        least = limit
    rows.add_row()
    return binned(every, [m.sides for m in every], PIXELS, named("{:g}", PIXELS), rows)


def binned(
    every: Sequence[Measures],
    values: Sequence[np.ndarray],
    edges: Sequence[float],
    names: Sequence[str],
    rows: Table | None = None,
) -> Table:
    """How many values lie in each bin; the first one has no beginning, the last one no end."""
    rows = rows or table("", *(m.name for m in every))
    for i, name in enumerate(names):
        rows.add_row(name, *(counted(np.digitize(v, edges) == i) for v in values))
    return rows


def named(form: str, edges: Sequence[float]) -> list[str]:
    """below A, A to B, ..., from Z"""
    words = [form.format(edge) for edge in edges]
    between = [f"{low} to {high}" for low, high in zip(words, words[1:], strict=False)]
    return [f"below {words[0]}", *between, f"from {words[-1]}"]


def classes(every: Sequence[Measures]) -> Table:
    """Objects of each class and images that have one, beginning with the most; of many classes both ends."""
    rows = table("", *(heading for m in every for heading in (f"{m.name}: objects", "images")))
    columns = [column for m in every for column in m.of_classes()]
    shown = ranked(every)
    for place, label in enumerate(shown):
        if place == ENDS and len(shown) < len(columns[0]):
            rows.add_row(f"... {len(columns[0]) - len(shown)} more")
        rows.add_row(escape(brief(every[0].categories.names[label], 30)), *(str(column[label]) for column in columns))
    return rows


def ranked(every: Sequence[Measures]) -> list[int]:
    """The classes by their objects in the first split, the most first; of more than both ENDS hold, the ends."""
    objects, _ = every[0].of_classes()
    order = np.argsort(-objects, kind="stable").tolist()
    return order if len(order) <= 2 * ENDS else order[:ENDS] + order[-ENDS:]


def with_settings(every: Sequence[Measures], config: Config) -> Table:
    """What the detector gets to see in evaluation."""
    data, rows = config.data, table("", *(m.name for m in every))
    rows.add_row(f"objects in an image at most, for {model_queries(config)} queries", *(str(m.counts.max()) for m in every))
    sizes = [evaluated(m, data) for m in every]
    rows.add_row(f"images at data.eval_size={data.eval_size}, wide", *(spread(size[:, 0]) for size in sizes))
    rows.add_row("  high", *(spread(size[:, 1]) for size in sizes))
    for limit in TINY:
        small = [m.sides_in(size) < limit for m, size in zip(every, sizes, strict=True)]
        rows.add_row(f"  objects below {limit} x {limit} pixels", *map(counted, small))
    return rows


def evaluated(measures: Measures, data: DataConfig) -> np.ndarray:
    """(I, 2) width and height of the images in evaluation."""
    sizes, which = np.unique(measures.images, axis=0, return_inverse=True)
    brought = [fitted(int(height), int(width), data.eval_size, data.max_size)[::-1] for width, height in sizes]
    return np.array(brought)[which.reshape(-1)]


def advice(every: Sequence[Measures], config: Config) -> list[str]:
    """Sentences on what the tables do not say."""
    most, queries = max(m.counts.max() for m in every), model_queries(config)
    lines = [f"queries: {queries} for at most {most} objects{MORE_OBJECTS if most > queries else ''}"]
    lines.append(f"denoising: {denoising(config, int(every[0].counts.max()))}")
    for m in every:
        objects, _ = m.of_classes()
        lacking = [name for name, count in zip(m.categories.names, objects, strict=True) if not count]
        if lacking:
            lines.append(f"{m.name}: no object of {len(lacking)} of {len(objects)} classes: {shorten(lacking)}")
    return lines


def counted(mask: np.ndarray) -> str:
    """How many, and which share of all."""
    return f"{mask.sum()}{mask.mean() if len(mask) else 0:>8.1%}"


def spread(values: np.ndarray) -> str:
    least, most = values.min(), values.max()
    return str(least) if least == most else f"{least} to {most}"


def draw(every: Sequence[Measures], config: Config, out: Path) -> None:
    """Six histograms of both splits over the same axes."""
    figure, axes = panels(6, rows=2)
    draw_counts(axes[0], every, model_queries(config))
    draw_sides(axes[1], every, config.data)
    for i, m in enumerate(every):
        distribution(axes[2], m.relative, np.linspace(0, 1, 33), f"C{i}", m.name)
        distribution(axes[3], m.forms.clip(1 / 8, 8), doubling(1 / 8, 8, 4), f"C{i}", m.name)
        sizes, many = np.unique(m.images, axis=0, return_counts=True)
        axes[4].scatter(*sizes.T, s=20 + 200 * many / many.sum(), color=f"C{i}", alpha=0.5, label=m.name)
    axes[3].set_xscale("log", base=2, subs=[])
    axes[3].set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
    draw_classes(axes[5], every)
    finish(axes[2], "Size in the image", "root of the box's share of its image", "share of the objects", epochs=False)
    finish(axes[3], "Form", "width : height", "share of the objects", epochs=False)
    finish(axes[4], "Images (area of a dot: how many)", "width in pixels", "height in pixels", epochs=False)
    axes[4].set_xlim(0, 1.08 * max(m.images[:, 0].max() for m in every))
    save_figure(figure, out)


def draw_counts(axes: Axes, every: Sequence[Measures], queries: int) -> None:
    """Objects in an image, and the queries where they are not far beyond."""
    most = max(m.counts.max() for m in every)
    step = max(1, math.ceil(most / 40))
    for i, m in enumerate(every):
        distribution(axes, m.counts, np.arange(0, most + step + 1, step) - 0.5, f"C{i}", m.name)
    if queries <= 2 * most:
        axes.axvline(queries, color="black", linestyle="--", label=f"{queries} queries")
    finish(axes, "Objects in an image", "objects", "share of the images")


def draw_sides(axes: Axes, every: Sequence[Measures], data: DataConfig) -> None:
    """Sizes in pixels, as the images are and as the detector sees them, with COCO's limits."""
    seen = [m.sides_in(evaluated(m, data)) for m in every]
    values = np.concatenate([*(m.sides for m in every), *seen, [1.0, 128.0]])
    edges = doubling(values.min(), values.max(), 4)
    for i, m in enumerate(every):
        distribution(axes, m.sides, edges, f"C{i}", m.name)
        share = np.full(len(seen[i]), 1 / max(len(seen[i]), 1))
        label = f"{m.name}, at data.eval_size={data.eval_size}"
        axes.hist(seen[i], edges, weights=share, color=f"C{i}", histtype="step", linestyle="--", label=label)
    for limit in (32, 96):
        axes.axvline(limit, color="black", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    finish(axes, "Size (dotted: COCO's limits)", "root of the box's area in pixels", "share of the objects", epochs=False)


def doubling(least: float, most: float, parts: int) -> np.ndarray:
    """Edges of bins of equal width in the logarithm, so many from a power of 2 to the next."""
    first, last = math.floor(math.log2(least)), math.ceil(math.log2(most))
    return 2.0 ** np.linspace(first, last, (last - first) * parts + 1)


def draw_classes(axes: Axes, every: Sequence[Measures]) -> None:
    shown = ranked(every)
    names = [brief(every[0].categories.names[label], 24) for label in shown]
    height = 0.8 / len(every)
    for i, m in enumerate(every):
        share = m.of_classes()[0] / max(len(m.labels), 1)
        axes.barh(
            np.arange(len(shown)) + i * height, share[shown], height, align="edge", color=f"C{i}", alpha=0.6, label=m.name
        )
    left = len(every[0].categories) - len(shown)
    finish(
        axes, "Classes" + (f" ({left} between these are left out)" if left else ""), "share of the objects", "", epochs=False
    )
    axes.set_yticks(np.arange(len(shown)) + 0.4, names, fontsize="small")
    axes.set_ylim(len(shown), -0.2)
    axes.legend(frameon=False, loc="lower right")  # where the shortest bars are
