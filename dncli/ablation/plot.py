"""The picture of a study: AP, IS and anchor distance over epochs, a colour a row, and AP against scales if it has any."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dndetr.ablation.plan import Study
from dndetr.ablation.results import Measured, curve, scale_rows
from dndetr.figures import panels, save_figure


def plot_study(study: Study, rows: Sequence[Measured], path: Path) -> None:
    """Write the picture. Lines are means over the seeds, bands reach from the lowest to the highest."""
    figure, axes = panels(len(CURVES) + bool(study.against), width=5.2, height=4.4)
    for place, (key, label, title) in zip(axes, CURVES, strict=False):
        draw_curves(place, rows, key)
        place.set(xlabel="epoch", ylabel=label, title=title)
    if study.against:
        draw_scales(axes[-1], study, rows)
    figure.suptitle(f"Ablation: {study.title}")
    save_figure(figure, path)


CURVES = (
    ("ap", "AP (%)", "validation AP, in brackets: seeds"),
    ("instability", "IS", "instability of matching"),
    ("anchor_distance", "l1 distance", "initial anchors to what they match"),
)


def draw_curves(axes: Axes, rows: Sequence[Measured], key: str) -> None:
    for row in rows:
        curves = [curve(trial, key) for trial in row.trials]
        epochs = sorted(set.intersection(*map(set, curves))) if curves else []
        draw_band(axes, epochs, [[values[epoch] for values in curves] for epoch in epochs], f"{row.row.name} ({len(curves)})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes)


def draw_scales(axes: Axes, study: Study, rows: Sequence[Measured]) -> None:
    for key in study.against:
        series = [row for row in scale_rows(study, rows, key) if row.trials]
        draw_band(axes, [row.settings[key] for row in series], [row.ap for row in series], key)
    axes.set(xlabel="scale", ylabel="AP (%)", title="AP after the last epoch")
    finish(axes)


def draw_band(axes: Axes, places: Sequence[float], values: Sequence[Sequence[float]], label: str) -> None:
    """A line through the means of the values at each place, and a band around all of them."""
    if not places:
        return
    (line,) = axes.plot(places, [statistics.mean(each) for each in values], marker="o", markersize=3, label=label)
    axes.fill_between(places, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.18, linewidth=0)


def finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False, fontsize="small")
