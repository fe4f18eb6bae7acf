"""`dndetr analyze is`: the instability of matching, epoch by epoch, of several runs (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from matplotlib import colormaps
from rich.table import Table

from dndetr.analysis.instability import Matches, difference, instability, largest_instability, layer_instability
from dndetr.analysis.output import save_csv, say, show, table, writing
from dndetr.analysis.runs import answers, checkpoints_by_epoch, open_runs, stored_matches
from dndetr.console import UserError
from dndetr.figures import finish, panels, save_figure
from dndetr.models.matcher import Matcher
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.commands import settings_of
from dndetr.training.evaluate import examine, matches_of
from dndetr.training.prepare import categories_of, load_validation
from dndetr.training.run import Run

EARLY = range(2, 7)  # epochs whose mean is given: the matching is least stable, and runs differ most
MENDED = "leave out what does not belong by removing its files"


class Series(NamedTuple):
    """The instability of one run."""

    name: str
    previous: dict[int, int]  # epoch -> the evaluated epoch before it, with which it is compared
    values: dict[int, np.ndarray]  # epoch -> Eq. 2 of each decoder layer (L,), or of the last one (1,)
    largest: float  # possible value
    groups: int = 1  # of matching queries in training, of which evaluations ask the first (Group DETR)

    @property
    def early(self) -> float | None:
        """The mean over the epochs EARLY, of the last layer; None where the run does not have them all."""
        neighbours = all(self.previous.get(epoch) == epoch - 1 for epoch in EARLY)
        return float(np.mean([self.values[epoch][-1] for epoch in EARLY])) if neighbours else None


def analyze_instability(
    paths: Sequence[str | Path],
    *,
    layers: bool = False,
    recompute: bool = False,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    trust: bool = False,
) -> list[Series]:
    """Print the instability of runs and draw it into `out` (RUN/analysis of the first run): instability.png and .csv.

    It is computed from the matches that evaluations left behind, or with `recompute` from those of the checkpoints that a
    run has; `overrides` then may change data.* and the like, as for `dndetr eval`; `trust` opens checkpoints that can run
    code. `layers` gives it for every decoder layer. Raises UserError.
    """
    if overrides and not recompute:
        raise UserError(f"{' '.join(overrides)}: settings matter with --recompute only, stored matches are as they are")
    runs = open_runs(paths)
    found = {name: recomputed(run, overrides, trust=trust) if recompute else stored(run) for name, run in runs.items()}
    every = [series_of(name, runs[name], matches, layers=layers) for name, matches in found.items()]
    if layers:
        for series in every:
            show(f"{series.name}: changed matches an image (IS, Eq. 2) by decoder layer", layer_table(series))
    else:
        show("Changed matches an image (IS, Eq. 2)", run_table(every))
    say(*notes(every))
    with writing(Path(out) if out else next(iter(runs.values())).path / "analysis") as folder:
        save_csv(folder / "instability.csv", rows(every, layers=layers))
        draw(every, folder / "instability.png", layers=layers)
    say(f"{folder / 'instability.png'} and instability.csv")
    return every


def stored(run: Run) -> dict[int, Matches]:
    matches = stored_matches(run)
    if len(matches) < 2:
        has = "no epoch" if not matches else f"epoch {next(iter(matches))} only"
        raise UserError(
            f"{run.path}: has matches of {has} in its folder matches, and instability compares two; "
            "--recompute makes them from its checkpoints"
        )
    return matches


def recomputed(run: Run, overrides: Sequence[str], *, trust: bool) -> dict[int, Matches]:
    """The matches of the validation images by each checkpoint that a run has."""
    files = checkpoints_by_epoch(run, trust=trust)
    if len(files) < 2:
        has = "no epoch" if not files else f"epoch {next(iter(files))} only"
        raise UserError(
            f"{run.path}: has a checkpoint at the end of {has}, and instability compares two; "
            "a training with train.keep_every=1 keeps one of each epoch"
        )
    matches, validation, splits = {}, None, {}
    for epoch, file in files.items():
        checkpoint = load_checkpoint(file, trust=trust)
        config = settings_of(checkpoint, overrides, file)
        splits[epoch] = checkpoint.data["val"]
        if splits[epoch] != splits[min(splits)]:
            raise UserError(
                f"{run.path}: epochs {min(splits)} and {epoch} were evaluated on different validation annotations, "
                f"so they are not compared; {MENDED}"
            )
        validation = validation or load_validation(config, categories_of(checkpoint))
        matcher, findings = Matcher(config.match), []
        for output, targets in answers(checkpoint, config, file, validation, f"{run.path.name}, epoch {epoch}"):
            findings += examine(output, targets, matcher, config.eval.top)
        matches[epoch] = matches_of(findings)
    return matches


def series_of(name: str, run: Run, matches: dict[int, Matches], *, layers: bool) -> Series:
    """Eq. 2 between each epoch and the one before that there is. Raises UserError where two do not belong together."""
    epochs = sorted(matches)
    previous = dict(zip(epochs[1:], epochs, strict=False))
    for now, before in previous.items():
        if differing := difference(matches[before], matches[now]):
            raise UserError(
                f"{run.path}: {differing} differ between epochs {before} and {now}, so they are not compared; {MENDED}"
            )
    without = [str(epoch) for epoch in epochs if matches[epoch].layers is None]
    if layers and without:
        raise UserError(
            f"{run.path}: has the matches of the last decoder layer only in epoch {', '.join(without)}; leave out --layers, "
            "or make those of all layers from its checkpoints with --recompute"
        )
    pairs = {now: (matches[before], matches[now]) for now, before in previous.items()}
    if layers:
        values = {epoch: layer_instability(*pair) for epoch, pair in pairs.items()}
    else:
        values = {epoch: np.array([instability(*pair)]) for epoch, pair in pairs.items()}
    return Series(name, previous, values, largest_instability(matches[epochs[-1]]), groups_of(run))


def groups_of(run: Run) -> int:
    """Its host.groups; 1 where that is not written."""
    file = run.path / "config.yaml"
    settings = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return settings.get("host", {}).get("groups", 1)


def run_table(every: Sequence[Series]) -> Table:
    """Epochs down, runs across."""
    shown = table("epoch", *(series.name for series in every))
    for epoch in sorted({epoch for series in every for epoch in series.values}):
        shown.add_row(str(epoch), *(number(s.values[epoch][-1]) if epoch in s.values else "-" for s in every))
    if any(series.early is not None for series in every):
        shown.add_row(f"mean, {EARLY[0]} to {EARLY[-1]}", *(number(series.early) for series in every), style="bold")
    shown.add_row("largest possible", *(number(series.largest) for series in every), style="dim")
    return shown


def layer_table(series: Series) -> Table:
    """Epochs down, decoder layers across."""
    count = len(next(iter(series.values.values())))
    shown = table("epoch", *(f"layer {i + 1}" for i in range(count)))
    for epoch, values in series.values.items():
        shown.add_row(str(epoch), *map(number, values))
    if series.early is not None:
        means = np.mean([series.values[epoch] for epoch in EARLY], axis=0)
        shown.add_row(f"mean, {EARLY[0]} to {EARLY[-1]}", *map(number, means), style="bold")
    shown.add_row("largest possible", *[number(series.largest)] * count, style="dim")
    return shown


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def notes(every: Sequence[Series]) -> list[str]:
    """What must be known of the numbers: the largest one, and where epochs are missing between two."""
    lines = ["The largest possible value is twice the objects of an image (its queries, where these are fewer), as a mean."]
    for series in every:
        if series.groups > 1:
            lines.append(
                f"{series.name} trains {series.groups} groups of matching queries: this is the matching of the first, with "
                "which it detects."
            )
        gaps = [f"{before} to {now}" for now, before in series.previous.items() if now - before > 1]
        if gaps:
            lines.append(
                f"{series.name} has no matches of some epochs: these are changes between the epochs that there are, "
                f"{', '.join(gaps)}."
            )
    return lines


def rows(every: Sequence[Series], *, layers: bool) -> list[dict[str, object]]:
    """A row for each run, epoch and layer."""
    return [
        {
            "run": series.name,
            "epoch": epoch,
            "previous_epoch": series.previous[epoch],
            "layer": layer + 1 if layers else "last",
            "instability": float(value),
            "largest": series.largest,
        }
        for series in every
        for epoch, values in series.values.items()
        for layer, value in enumerate(values)
    ]


def draw(every: Sequence[Series], path: Path, *, layers: bool) -> None:
    """All runs in one panel, or a panel a run with its layers."""
    figure, axes = panels(len(every) if layers else 1)
    for i, series in enumerate(every):
        curves = np.array(list(series.values.values())).T  # L epochs
        for layer, curve in enumerate(curves):
            label, color = f"{series.name}, of at most {series.largest:.2f}", f"C{i}"
            if layers:
                label, color = f"layer {layer + 1}", colormaps["viridis"](0.9 * layer / max(len(curves) - 1, 1))
            axes[i if layers else 0].plot(list(series.values), curve, marker="o", markersize=3, label=label, color=color)
    for i, panel in enumerate(axes):
        title = f"{every[i].name}, of at most {every[i].largest:.2f}" if layers else "Instability of matching (Eq. 2)"
        finish(panel, title, "epoch", "changed matches an image")
    if layers:
        top = max(panel.get_ylim()[1] for panel in axes)
        for panel in axes:
            panel.set_ylim(0, top)
    save_figure(figure, path)
