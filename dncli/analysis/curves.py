"""`dndetr analyze curves`: AP over epochs and over time (Fig. 1 and 7), and how much sooner a run is where another ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise, permutations
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from dndetr.analysis.output import say, show, table, writing
from dndetr.analysis.runs import open_runs, records_of
from dndetr.console import UserError
from dndetr.figures import finish, panels, save_figure


class Curve(NamedTuple):
    """The evaluations of one run, in order."""

    name: str
    epochs: list[int]
    seconds: list[float]  # since the first step, evaluations included
    ap: list[float]

    def best(self) -> int:
        """The index of the first evaluation with the highest AP."""
        return self.ap.index(max(self.ap))


class Arrival(NamedTuple):
    """When run `a` reaches what run `b` has: its `aim` AP."""

    a: str
    b: str
    aim: str  # final or best
    ap: float
    mine: float | None  # epochs or seconds that `a` needs; None = not reached
    theirs: float  # that `b` needed
    at_first: bool  # whether `a` has it by its first evaluation, perhaps earlier

    @property
    def ratio(self) -> float | None:
        """How many times as fast `a` was."""
        return None if self.mine is None else self.theirs / self.mine


def analyze_curves(paths: Sequence[str | Path], *, out: str | Path | None = None) -> list[Arrival]:
    """Print AP by epoch and the acceleration of each run against each other; draw curves.png into `out`.

    `out` is RUN/analysis of the first run by default. Returns the acceleration in epochs. Raises UserError.
    """
    runs = open_runs(paths)
    curves = [curve_of(name, records_of(run)) for name, run in runs.items()]
    show("AP on the validation images", ap_table(curves))
    arrivals = acceleration(curves, "epochs")
    if arrivals:
        show("Acceleration in epochs", arrival_table(arrivals))
        show("Acceleration in seconds, evaluations included", arrival_table(acceleration(curves, "seconds")))
        say(
            "A run reaches an AP where the line between neighbouring evaluations first crosses it (linear interpolation; a "
            "later fall does not count), or, marked <=, by its first evaluation.",
            "Seconds depend on the machine: compare runs of one machine.",
        )
    with writing(Path(out) if out else next(iter(runs.values())).path / "analysis") as folder:
        draw(curves, folder / "curves.png")
    say(f"{folder / 'curves.png'}")
    return arrivals


def curve_of(name: str, records: Sequence[dict[str, Any]]) -> Curve:
    """The epochs of a run that were evaluated; the seconds of the others count as well."""
    seconds = accumulate(record["seconds"] for record in records)
    points = [(r["epoch"], s, r["ap"]) for r, s in zip(records, seconds, strict=True) if r["ap"] is not None]
    if not points:
        raise UserError(f"{name}: no epoch has an AP yet, so there is no curve")
    return Curve(name, *map(list, zip(*points, strict=True)))


def acceleration(curves: Sequence[Curve], unit: str) -> list[Arrival]:
    """For each ordered pair of runs when the first reaches the final and the best AP of the second, in epochs or seconds."""
    found = []
    for a, b in permutations(curves, 2):
        for aim, index in (("final", len(b.ap) - 1), ("best", b.best())):
            mine, theirs = crossing(getattr(a, unit), a.ap, b.ap[index]), getattr(b, unit)[index]
            found.append(Arrival(a.name, b.name, aim, b.ap[index], mine, theirs, a.ap[0] >= b.ap[index]))
    return found


def crossing(x: Sequence[float], y: Sequence[float], level: float) -> float | None:
    """The first x where the line through the points reaches `level`; the first point's where it is there from the start."""
    if y[0] >= level:
        return float(x[0])
    for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)):
        if y1 >= level:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return None


def ap_table(curves: Sequence[Curve]) -> Table:
    """Epochs down, runs across."""
    by_epoch = [dict(zip(curve.epochs, curve.ap, strict=True)) for curve in curves]
    shown = table("epoch", *(curve.name for curve in curves))
    for epoch in sorted({epoch for aps in by_epoch for epoch in aps}):
        shown.add_row(str(epoch), *(f"{aps[epoch]:.3f}" if epoch in aps else "-" for aps in by_epoch))
    best = (f"{curve.ap[curve.best()]:.3f}" for curve in curves)
    shown.add_row("best", *best, style="bold")
    shown.add_row("seconds", *(f"{curve.seconds[-1]:.0f}" for curve in curves), style="dim")
    return shown


def arrival_table(arrivals: Sequence[Arrival]) -> Table:
    shown = table("run", "reaches of", "its", "AP", "in", "instead of", "faster")
    for arrival in arrivals:
        mine, ratio = "not reached", "-"
        if arrival.mine is not None:
            mine, ratio = f"{arrival.mine:.1f}", f"{arrival.ratio:.2f} x"
            mine, ratio = (f"<= {mine}", f">= {ratio}") if arrival.at_first else (mine, ratio)
        names = escape(arrival.a), escape(arrival.b)
        shown.add_row(*names, arrival.aim, f"{arrival.ap:.3f}", mine, f"{arrival.theirs:.0f}", ratio)
    return shown


def draw(curves: Sequence[Curve], path: Path) -> None:
    """AP over epochs, and over time in the unit that suits it."""
    figure, (left, right) = panels(2)
    longest = max(curve.seconds[-1] for curve in curves)
    unit, length = next((u, s) for u, s in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if longest >= 2 * s or s == 1)
    for curve in curves:
        left.plot(curve.epochs, curve.ap, marker="o", markersize=3, label=curve.name)
        right.plot([s / length for s in curve.seconds], curve.ap, marker="o", markersize=3, label=curve.name)
    finish(left, "Over epochs", "epoch", "AP")
    finish(right, "Over time, evaluations included", unit, "AP", epochs=False)
    save_figure(figure, path)
