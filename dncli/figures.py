"""Figures of curves, in one look: axes side by side, their words, and a file that is there whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from dndetr.files import replace_bytes


def panels(count: int, width: float = 6.4, height: float = 4.0, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Axes side by side in a new figure, or in so many rows that `count` fills; each of so many inches."""
    figure = Figure(figsize=(width * count / rows, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, count // rows, squeeze=False).flat)


def distribution(axes: Axes, values: ArrayLike, edges: ArrayLike, color: str, label: str) -> None:
    """Which share of the values lies between which edges."""
    share = np.full(len(values), 1 / max(len(values), 1))
    axes.hist(values, edges, weights=share, color=to_rgba(color, 0.25), histtype="stepfilled", label=label)
    axes.hist(values, edges, weights=share, color=color, histtype="step")


def finish(axes: Axes, title: str, xlabel: str, ylabel: str, *, epochs: bool = True) -> None:
    """Words, grid and legend of curves that begin at 0."""
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if epochs:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.set_ylim(0, 1.08 * axes.dataLim.ymax or 1)
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "nothing measured yet", ha="center", va="center", transform=axes.transAxes)


def save_figure(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    replace_bytes(path, content.getvalue())
