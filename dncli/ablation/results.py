"""What a study found: means and spreads over seeds beside the paper's numbers, and whether the paper's order shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from dndetr.ablation.plan import Row, Study
from dndetr.ablation.runs import Trial
from dndetr.analysis.curves import crossing
from dndetr.analysis.output import save_csv
from dndetr.resolve import leaves

EARLY = range(2, 7)  # epochs over which instability and anchor distance are averaged: later the orders of rows mix
RULE = (
    "A difference of means counts (yes, no) where it is larger than twice its standard error over the seeds, "
    "sqrt(s1^2 / n1 + s2^2 / n2); else it is within noise."
)


@dataclass(frozen=True)
class Measured:
    """The finished runs of one row."""

    row: Row
    trials: tuple[Trial, ...]
    settings: dict[str, Any]  # of the row by dotted key

    @classmethod
    def of(cls, row: Row, trials: Sequence[Trial]) -> Measured:
        own = [trial for trial in trials if trial.row is row]
        return cls(row, tuple(trial for trial in own if trial.finished), leaves(own[0].resolved.tree))

    @property
    def ap(self) -> list[float]:
        """AP of each run after its last epoch, in percent."""
        return [percent(trial.records()[-1]["ap"]) for trial in self.trials]

    def early(self, key: str) -> list[float]:
        """The mean of each run over epochs 2 to 6: its `instability` (Eq. 2) or `anchor_distance` (Sec. 3.2)."""
        runs = [early(trial.records(), key) for trial in self.trials]
        return [value for value in runs if not math.isnan(value)]

    def shares(self, first: Measured) -> list[float]:
        """The epochs each run needs for the final AP of the first row's run with the same seed, as a share of that one's
        epochs (Fig. 7, Table 7). Empty unless all of them reach it.
        """
        theirs = {trial.seed: trial for trial in first.trials}
        found = [share(trial, theirs[trial.seed]) for trial in self.trials if trial.seed in theirs]
        return [] if None in found else found


class Comparison(NamedTuple):
    """Whether one row lies above another, as in the paper."""

    claim: str
    paper: float | None  # difference of AP in percent
    difference: float  # of means, nan where a row has no run yet
    noise: float  # twice its standard error
    shows: str  # yes, no, within noise, one seed, not yet


def measure(study: Study, trials: Sequence[Trial]) -> list[Measured]:
    """The finished runs of every row."""
    return [Measured.of(row, trials) for row in study.rows]


def compare(study: Study, rows: Sequence[Measured], preset: str) -> list[Comparison]:
    """Neighbours in the paper's order; rows that it calls comparable; and for scales, that AP rises and then falls."""
    numbers = {id(row): row.row.paper_ap(preset)[0] for row in rows}
    ranked = [row for row in rows if numbers[id(row)] is not None and row.row.as_good_as is None]
    ranked.sort(key=lambda row: -numbers[id(row)])
    found = [
        comparison(f"{above.row.name} > {below.row.name}", above, below, numbers[id(above)] - numbers[id(below)])
        for above, below in pairwise(ranked)
    ]
    for row in rows:
        if row.row.as_good_as is not None:
            other = next(r for r in rows if r.row.name == row.row.as_good_as)
            pair = numbers[id(row)], numbers[id(other)]
            paper = None if None in pair else pair[0] - pair[1]
            claim = f"{row.row.name} as good as {other.row.name}"
            found.append(comparison(claim, row, other, paper, equal=True))
    for key in study.against:
        found += rise_and_fall(key, scale_rows(study, rows, key))
    return found


def comparison(claim: str, above: Measured, below: Measured, paper: float | None = None, *, equal: bool = False) -> Comparison:
    """`equal`: it is enough that `above` is not below by more than the noise."""
    if not above.trials or not below.trials:
        return Comparison(claim, paper, math.nan, math.nan, "not yet")
    difference = statistics.mean(above.ap) - statistics.mean(below.ap)
    noise = 2 * standard_error(above.ap, below.ap)
    return Comparison(claim, paper, difference, noise, verdict(difference, noise, equal=equal))


def paired(claim: str, differences: Sequence[float], paper: float | None = None) -> Comparison:
    """Whether differences of AP, each of two runs of one seed, lie above 0."""
    if not differences:
        return Comparison(claim, paper, math.nan, math.nan, "not yet")
    spread = statistics.stdev(differences) if len(differences) > 1 else math.nan
    mean, noise = statistics.mean(differences), 2 * spread / math.sqrt(len(differences))
    return Comparison(claim, paper, mean, noise, verdict(mean, noise))


def verdict(difference: float, noise: float, *, equal: bool = False) -> str:
    """One word, by the rule that stands below every table."""
    if math.isnan(noise):
        return "one seed"
    if abs(difference) <= noise:
        return "yes" if equal else "within noise"
    return "yes" if difference > 0 else "no"


def standard_error(first: Sequence[float], second: Sequence[float]) -> float:
    """Of the difference of two means, from the sample variances; nan where one of them has a single value."""
    if min(len(first), len(second)) < 2:
        return math.nan
    return math.sqrt(statistics.variance(first) / len(first) + statistics.variance(second) / len(second))


def scale_rows(study: Study, rows: Sequence[Measured], key: str) -> list[Measured]:
    """The rows that differ from the first one in this scale only, and the first one, from the smallest scale on."""
    others = [other for other in study.against if other != key]
    first = rows[0].settings
    series = [row for row in rows if key in row.settings and all(row.settings.get(k) == first.get(k) for k in others)]
    return sorted(series, key=lambda row: row.settings[key])


def rise_and_fall(key: str, series: Sequence[Measured]) -> list[Comparison]:
    """The best scale between the ends against both ends."""
    inner = [row for row in series[1:-1] if row.trials]
    if not inner:
        return []
    peak = max(inner, key=lambda row: statistics.mean(row.ap))
    value, name = peak.settings[key], key.rpartition(".")[2]
    ends = [(end, f"{name}: {value:g} > {end.settings[key]:g}") for end in (series[0], series[-1])]
    return [comparison(claim, peak, end) for end, claim in ends]


def curve(trial: Trial, key: str = "ap") -> dict[int, float]:
    """What was measured by epoch; AP in percent."""
    factor = 100 if key == "ap" else 1
    return {record["epoch"]: factor * record[key] for record in trial.records() if record.get(key) is not None}


def early(records: Sequence[dict[str, Any]], key: str) -> float:
    """The mean of what was measured in epochs 2 to 6, nan where nothing was."""
    values = [record[key] for record in records if record["epoch"] in EARLY and record.get(key) is not None]
    return statistics.mean(values) if values else math.nan


def share(trial: Trial, first: Trial) -> float | None:
    """When one run has the final AP of another one, in the other's epochs: 0.5 is half of them. None = never."""
    mine, theirs = curve(trial), curve(first)
    if not mine or not theirs:
        return None
    reached = crossing(list(mine), list(mine.values()), list(theirs.values())[-1])
    return None if reached is None else reached / first.epochs


def percent(ap: float | None) -> float:
    return math.nan if ap is None else 100 * ap


def write_tables(study: Study, trials: Sequence[Trial], preset: str, out: Path) -> None:
    """results.csv, a line a finished run, and curves.csv, a line an epoch of it; AP in percent."""
    done = [trial for trial in trials if trial.finished]
    runs = [
        {
            "row": trial.row.name,
            "seed": trial.seed,
            "epochs": trial.epochs,
            "ap": number(percent(trial.records()[-1]["ap"])),
            "best_ap": number(max(curve(trial).values(), default=math.nan)),
            "is_2_to_6": number(early(trial.records(), "instability")),
            "anchors_2_to_6": number(early(trial.records(), "anchor_distance")),
            "seconds": number(sum(record["seconds"] for record in trial.records())),
            "paper_ap": trial.row.paper_ap(preset)[0],
            "run": trial.folder,
        }
        for trial in done
    ]
    kept = ("epoch", "ap", "ap50", "ap75", "loss", "dn_loss", "instability", "anchor_distance", "seconds")
    epochs = [
        {
            "row": trial.row.name,
            "seed": trial.seed,
            **{key: record.get(key) for key in kept},
            "ap": number(percent(record["ap"])),
        }
        for trial in done
        for record in trial.records()
    ]
    save_csv(out / "results.csv", runs)
    save_csv(out / "curves.csv", epochs)


def number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
