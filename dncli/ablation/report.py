"""How a study is shown: its plan, and its results in a terminal and as a page of Markdown."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from dndetr.ablation.plan import Study
from dndetr.ablation.plot import plot_study
from dndetr.ablation.results import RULE, Comparison, Measured, compare, measure, write_tables
from dndetr.ablation.runs import Trial
from dndetr.analysis.output import table
from dndetr.console import console, say
from dndetr.files import replace_text, writable

COLUMNS = ("row", "seeds", "AP", "IS", "anchors", "epochs", "paper", "delta")
LEGEND = (
    "Mean and sample standard deviation over the seeds of AP after the last epoch in percent; of IS and of the l1 distance "
    "from anchors to what they match, both over epochs 2 to 6; and of the epochs to the first row's final AP, as a share of "
    "the first row's epochs (linear interpolation; a dash where a seed does not reach it). delta is the difference to the "
    "first row's AP."
)
QUESTIONS = ("the paper's order", "paper", "here", "2 s.e.", "shows")


def show_plan(study: Study, trials: Sequence[Trial], preset: str, out: Path) -> None:
    """A row each: what it changes and how much of it is done."""
    heading(study, preset)
    if study.base:
        say(f"every row: {' '.join(override.text for override in study.base)}")
    cells = []
    for row in study.rows:
        own = [trial for trial in trials if trial.row is row]
        changes = [override.text for override in row.set]
        changes += [f"{row.epochs:g} of the epochs"] if row.epochs != 1 else []
        done = sum(trial.finished for trial in own)
        cells.append((row.name, " ".join(changes) or "nothing", str(own[0].epochs), str(len(own)), str(done)))
    shown = as_table(("row", "changes", "epochs", "runs", "done"), cells)
    shown.columns[1].justify = "left"
    console.print(shown)
    done = sum(trial.finished for trial in trials)
    begun = sum(trial.begun for trial in trials) - done
    left = sum(trial.epochs - len(trial.records()) for trial in trials)
    say(f"{len(trials)} runs in {out}: {done} finished, {begun} to go on with; {left} epochs to train")


def show_results(study: Study, trials: Sequence[Trial], preset: str, out: Path, command: str) -> None:
    """Print what is known so far, and write results.md, results.csv, curves.csv and results.png into `out`."""
    rows = measure(study, trials)
    if not any(row.trials for row in rows):
        return say("no run is finished yet")
    comparisons = compare(study, rows, preset)
    heading(study, preset)
    console.print(as_table(COLUMNS, lines(rows, preset)))
    if comparisons:
        say("")
        console.print(as_table(QUESTIONS, answers(comparisons)))
        console.print(RULE, markup=False)
    with writable(out):
        write_tables(study, trials, preset, out)
        plot_study(study, rows, out / "results.png")
        replace_text(out / "results.md", as_markdown(study, rows, comparisons, preset, command))
    say(f"written to {out}: results.md, results.csv, curves.csv, results.png")


def heading(study: Study, preset: str) -> None:
    say(f"dndetr ablate {study.title}, preset {preset}")
    source = study.paper_source(preset)
    if study.setting:
        say(f"in the paper: {study.setting}" + (f"; its numbers {source}" if source else ""))


def lines(rows: Sequence[Measured], preset: str) -> list[tuple[str, ...]]:
    """The cells of the table of results, see LEGEND."""
    reference = rows[0].ap
    found = []
    for row in rows:
        paper, _ = row.row.paper_ap(preset)
        delta = signed(mean(row.ap) - mean(reference)) if row is not rows[0] else ""
        measured = (row.ap, 1), (row.early("instability"), 2), (row.early("anchor_distance"), 3)
        share = mean_and_spread(row.shares(rows[0]), 2) if row is not rows[0] else ""
        cells = (*(mean_and_spread(*each) for each in measured), share)
        found.append((row.row.name, str(len(row.trials)), *cells, "" if paper is None else f"{paper:.1f}", delta))
    return found


def answers(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    return [
        (c.claim, "" if c.paper is None else f"{c.paper:+.1f}", signed(c.difference), plain(c.noise), c.shows)
        for c in comparisons
    ]


def as_markdown(study: Study, rows: Sequence[Measured], comparisons: Sequence[Comparison], preset: str, command: str) -> str:
    """A page: the command, the table, the order, the picture."""
    parts = [f"# Ablation: {study.title}", f"Preset `{preset}`. Made by:", f"```sh\n{command}\n```"]
    source = study.paper_source(preset)
    if study.setting:
        parts.append(f"In the paper: {study.setting}" + (f"; its numbers are those {source}." if source else "."))
    parts += [LEGEND, as_pipes(COLUMNS, lines(rows, preset))]
    if comparisons:
        parts += [as_pipes(QUESTIONS, answers(comparisons)), RULE]
    parts.append("![AP, IS and anchor distance over epochs](results.png)")
    return "\n\n".join(parts) + "\n"


def as_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    shown = table(*columns)
    for line in cells:
        shown.add_row(*map(escape, line))
    return shown


def as_pipes(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *cells))


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """`43.1 ± 0.4`: the mean and the sample standard deviation; one value has no spread, none is a dash."""
    if math.isnan(mean(values)):
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else math.nan


def signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.1f}"


def plain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def command_line(study: str, options: dict[str, str], overrides: Sequence[str]) -> str:
    """The command that makes this study again."""
    words = ["dndetr", "ablate", study, *(word for pair in options.items() for word in pair), *overrides]
    return shlex.join(words)
