"""`dndetr analyze anchors`: how far queries search, from their initial anchors to the boxes that they match (Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from rich.markup import escape
from rich.table import Table

from dndetr.analysis.output import say, show, table, writing
from dndetr.analysis.runs import answers, open_runs
from dndetr.console import UserError
from dndetr.data.coco import ImageRecord, Split
from dndetr.data.images import Reading, read_image, reading_of
from dndetr.figures import distribution, finish, panels, save_figure
from dndetr.models.matcher import Matcher
from dndetr.models.structures import Output, Target
from dndetr.training.checkpoint import find_checkpoint, load_checkpoint
from dndetr.training.commands import settings_of
from dndetr.training.evaluate import anchor_distances, match_vectors, matched_anchors
from dndetr.training.prepare import categories_of, load_validation
from dndetr.training.run import Run

BINS = 30  # of the histogram
COLOURS = "coolwarm"  # cooler is shorter, as in Fig. 4


class Arrows(NamedTuple):
    """From the initial anchors of one image's matching queries to what they match in the last decoder layer."""

    image_id: int
    anchors: np.ndarray  # (A, 2 or 4) cxcywh in units of the image; points have no size
    boxes: np.ndarray  # (A, 4)
    distances: np.ndarray  # (A,) l1 over all that an anchor has


class Reach(NamedTuple):
    """What is known of one run."""

    name: str
    epoch: int  # of the checkpoint
    arrows: dict[int, Arrows]  # by image id
    curve: list[tuple[int, float]]  # epoch and mean distance, where the run recorded it
    split: Split
    reading: Reading  # of the run's pictures

    @property
    def distances(self) -> np.ndarray:
        return np.concatenate([arrows.distances for arrows in self.arrows.values()])

    @property
    def points(self) -> bool:
        """Whether the queries are points, without a size."""
        return next(iter(self.arrows.values())).anchors.shape[1] == 2


def analyze_anchors(
    paths: Sequence[str | Path],
    *,
    images: int = 4,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    trust: bool = False,
) -> list[Reach]:
    """Print the mean distance of runs, by their best epoch; draw curve, histogram and arrows of `images` validation images.

    `out` (RUN/analysis of the first run) receives anchors.png and arrows/IMAGE_ID.png. `overrides` may change data.* and the
    like, as for `dndetr eval`; `trust` opens checkpoints that can run code. Raises UserError.
    """
    runs = open_runs(paths)
    every = [measure(name, run, overrides, trust=trust) for name, run in runs.items()]
    for other in every[1:]:
        if other.split.digest != every[0].split.digest:
            raise UserError(
                f"{every[0].name} and {other.name} have different validation images, so their anchors are not compared; "
                "name one dataset for both with data.root=DATASET"
            )
    show("Initial anchors to matched boxes", summary(every))
    say(*notes(every))
    with writing(Path(out) if out else next(iter(runs.values())).path / "analysis") as folder:
        draw_distances(every, folder / "anchors.png")
        chosen = choose(every[0], images)
        longest = max((each.arrows[image.id].distances.max() for each in every for image in chosen), default=1.0)
        with writing(folder / "arrows") as pictures:
            for image in chosen:
                draw_arrows(every, image, longest, pictures / f"{image.id:012d}.png")
    say(
        f"{folder / 'anchors.png'}"
        + (f"; arrows of {len(chosen)} image{'' if len(chosen) == 1 else 's'}: {pictures}" if chosen else "")
    )
    return every


def measure(name: str, run: Run, overrides: Sequence[str], *, trust: bool) -> Reach:
    """Run the best epoch of a run over the validation images. Raises UserError where they hold no object."""
    file = find_checkpoint(run.path, "best.pt")
    checkpoint = load_checkpoint(file, trust=trust)
    config = settings_of(checkpoint, overrides, file)
    validation, matcher = load_validation(config, categories_of(checkpoint)), Matcher(config.match)
    found: dict[int, Arrows] = {}
    for output, targets in answers(checkpoint, config, file, validation, name):
        if output.anchors is None:
            raise UserError(
                f"{file}: queries of host {config.host.name} are embeddings and start at no place: they have no anchors"
            )
        found |= {arrows.image_id: arrows for arrows in arrows_of(output, targets, matcher)}
    if not any(len(arrows.distances) for arrows in found.values()):
        raise UserError(f"{validation.split.annotation_file}: no object to be matched, so there is no distance to an anchor")
    curve = [(r["epoch"], r["anchor_distance"]) for r in run.records() if r.get("anchor_distance") is not None]
    return Reach(name, checkpoint.step // checkpoint.steps_per_epoch, found, curve, validation.split, reading_of(config.data))


def arrows_of(output: Output, targets: Sequence[Target], matcher: Matcher) -> list[Arrows]:
    """The arrows of each image of a batch."""
    last = match_vectors(output, targets, matcher)[-1]  # B N
    found = []
    for anchors, target, matched in zip(output.anchors, targets, last, strict=True):
        starts, ends = matched_anchors(anchors, target, matched)
        arrays: list[torch.Tensor] = [starts, ends, anchor_distances(starts, ends)]
        found.append(Arrows(target.image_id, *(array.cpu().numpy() for array in arrays)))
    return found


def in_pixels(arrows: Arrows, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Where arrows start, at the centres of anchors, and end, at the centres of boxes: (A, 2) x, y in pixels twice."""
    size = np.array([width, height])
    return arrows.anchors[:, :2] * size, arrows.boxes[:, :2] * size


def summary(every: Sequence[Reach]) -> Table:
    """Distances by run, with the share of the centre and of the size in them."""
    shown = table("run", "epoch", "objects", "mean", "centre", "size", "median")
    for each in every:
        offsets = np.concatenate([np.abs(a.anchors - a.boxes[:, : a.anchors.shape[1]]) for a in each.arrows.values()])
        centre = offsets[:, :2].sum(1).mean()
        size = "-" if each.points else f"{offsets[:, 2:].sum(1).mean():.3f}"
        mean, median = each.distances.mean(), np.median(each.distances)
        shown.add_row(
            escape(each.name), str(each.epoch), str(len(offsets)), f"{mean:.3f}", f"{centre:.3f}", size, f"{median:.3f}"
        )
    return shown


def notes(every: Sequence[Reach]) -> list[str]:
    """What the numbers are, and where they are something else."""
    lines = [
        "The l1 distance adds up the differences in cx, cy, w and h, in units of the image, of every object and the initial "
        "anchor of the query that matches it in the last decoder layer."
    ]
    for each in every:
        if each.points:
            lines.append(
                f"The queries of {each.name} are points without a size: its distance is over the centre alone, and stands "
                "beside the centre of others, not beside their mean."
            )
    return lines


def draw_distances(every: Sequence[Reach], path: Path) -> None:
    """The histograms of all runs over the same bins, beside the means by epoch where any run has them."""
    figure, axes = panels(2 if any(each.curve for each in every) else 1)
    edges = np.linspace(0, max(each.distances.max() for each in every), BINS + 1)
    for i, each in enumerate(every):
        distribution(axes[0], each.distances, edges, f"C{i}", f"{each.name}, epoch {each.epoch}")
        axes[0].axvline(each.distances.mean(), color=f"C{i}", linestyle="--")
        if each.curve:
            axes[1].plot(*zip(*each.curve, strict=True), marker="o", markersize=3, color=f"C{i}", label=each.name)
    finish(axes[0], "Initial anchors to matched boxes (dashed: mean)", "l1 distance", "share of the objects", epochs=False)
    if len(axes) > 1:
        finish(axes[1], "After each epoch", "epoch", "mean l1 distance")
    save_figure(figure, path)


def choose(reach: Reach, count: int) -> list[ImageRecord]:
    """Images with objects, evenly taken from the split."""
    candidates = [image for image in reach.split.images if len(reach.arrows[image.id].distances)]
    step = max(1, len(candidates) // max(count, 1))
    return candidates[::step][:count]


def draw_arrows(every: Sequence[Reach], image: ImageRecord, longest: float, path: Path) -> None:
    """Fig. 4: one image with the arrows of each run side by side, all on one scale of colours, which ends at `longest`."""
    pixels = np.asarray(read_image(image.path, (image.width, image.height), every[0].reading))
    width = float(np.clip(4 * image.width / image.height, 2.5, 8))
    figure, axes = panels(len(every), width, 4.4)
    scale = Normalize(0, longest)
    for panel, each in zip(axes, every, strict=True):
        panel.imshow(pixels, alpha=0.6, extent=(0, image.width, image.height, 0))
        arrows = draw_one(panel, each.arrows[image.id], image, scale)
        panel.set_title(f"{each.name}, mean {each.arrows[image.id].distances.mean():.2f}", fontsize="medium")
    figure.colorbar(arrows, ax=axes, label="l1 distance", fraction=0.05)
    save_figure(figure, path)


def draw_one(panel: Axes, arrows: Arrows, image: ImageRecord, scale: Normalize) -> Any:
    """The arrows and, thin, the boxes that they point to; returns what a colour bar is made of."""
    starts, ends = in_pixels(arrows, image.width, image.height)
    sizes = arrows.boxes[:, 2:] * (image.width, image.height)
    boxes = [Rectangle(end - size / 2, *size) for end, size in zip(ends, sizes, strict=True)]
    panel.add_collection(PatchCollection(boxes, facecolor="none", edgecolor="black", linewidth=0.7))
    drawn = panel.quiver(
        *starts.T, *(ends - starts).T, arrows.distances, cmap=COLOURS, norm=scale,
        angles="xy", scale_units="xy", scale=1, width=0.009, edgecolor="black", linewidth=0.4,
    )  # fmt: skip
    panel.scatter(*starts.T, c=arrows.distances, cmap=COLOURS, norm=scale, s=14, edgecolors="black", linewidths=0.4, zorder=3)
    panel.set(xticks=[], yticks=[], xlim=(0, image.width), ylim=(image.height, 0))
    return drawn
