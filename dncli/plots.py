"""Curves of a run, drawn from its metrics."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from dndetr.figures import finish, panels, save_figure

Records = Sequence[dict[str, Any]]


def plot_run(records: Records, folder: Path) -> None:
    """Write losses.png, ap.png, instability.png and anchor_distance.png into `folder`."""
    with_share = [{**r, "matching": r["loss"] - (r["dn_loss"] or 0.0)} for r in records]
    curves = {
        "losses": ("Losses of training", "weighted loss", {"matching": "matching", "dn_loss": "denoising"}),
        "ap": ("Average precision on the validation images", "AP", {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}),
        "instability": ("Instability of matching (Eq. 2)", "changed matches an image", {"instability": "IS"}),
        "anchor_distance": (
            "Initial anchors to matched boxes (Sec. 3.2)",
            "mean l1 distance",
            {"anchor_distance": "last decoder layer"},
        ),
    }
    for name, (title, label, lines) in curves.items():
        draw(with_share, lines, title, label, folder / f"{name}.png")
    gc.collect()  # a figure is full of cycles, which Python would let pile up over tens of epochs


def draw(records: Records, lines: dict[str, str], title: str, label: str, path: Path) -> None:
    figure, (axes,) = panels(1)
    for key, legend in lines.items():
        draw_line(axes, records, key, legend)
    finish(axes, title, "epoch", label)
    save_figure(figure, path)


def draw_line(axes: Axes, records: Records, key: str, legend: str) -> None:
    """One curve over the epochs where `key` was measured."""
    points = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=legend)
