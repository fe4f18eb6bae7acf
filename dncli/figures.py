"""Figures of curves, in one look: axes side by side, their words, and a file that is there whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dndetr.files import replace_bytes


def panels(count: int, width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """Axes side by side in a new figure, each of so many inches."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


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
