"""`dndetr known-objects`: do objects of some classes, when they are given, help to find those of the others (Table 9)?

For each seed the classes are split at random into known and unknown ones, and three detectors are trained: without
denoising on the unknown classes alone, as the paper's baseline; with denoising on the unknown classes alone, which the paper
has not, so that what denoising does by itself is not taken for what the known objects do; and with the known objects in the
denoising part, which the matching queries may see. The last one is evaluated without known objects and with them.

Settings that the paper does not give: known objects are told in one denoising group, since without the attention mask
groups would see each other, and with the noise of the preset; AP(Cond) is measured with the true boxes and labels.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dndetr.ablation.plan import Override, Row, Study
from dndetr.ablation.report import QUESTIONS, answers, as_pipes, as_table, mean_and_spread
from dndetr.ablation.results import Comparison, number, paired, percent
from dndetr.ablation.runs import Trial, check_folders, plan_trials
from dndetr.ablation.study import train_all
from dndetr.analysis.output import save_csv
from dndetr.asking import GivenObjects
from dndetr.console import UserError, console, say
from dndetr.data.coco import load_split
from dndetr.data.layouts import find_dataset
from dndetr.files import replace_text, writable
from dndetr.resolve import from_tree, load_preset
from dndetr.settings import Place
from dndetr.tasks import labels_of
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.commands import measure
from dndetr.training.prepare import categories_of

PAPER = {0.7: (38.4, 42.1, 42.9), 0.5: (37.8, 39.1, 40.3)}  # DAB-DETR, DN-DETR, AP(Cond)
RULE = (
    "Differences are taken seed by seed, since every seed has its own classes. A mean difference counts (yes, no) where it is "
    "larger than twice its standard error; else it is within noise."
)
NAMES = ("DAB, unknown classes alone", "DN, unknown classes alone", "DN, known objects told")
COLUMNS = ("detector", "seeds", "AP", "AP(Cond)", "paper", "paper (Cond)")


@dataclass(frozen=True)
class Split:
    """Which classes are unknown, that is to be found, with one seed."""

    seed: int
    unknown: tuple[str, ...]

    @property
    def study(self) -> Study:
        """The three trainings of this seed."""
        classes = f"task.classes={json.dumps(self.unknown)}"
        place = Place(3, 0, "known-objects")
        told = (classes, "task.name=known_objects")
        settings = {NAMES[0]: (classes, "noise=null"), NAMES[1]: (classes,), NAMES[2]: told}
        rows = [Row(name, tuple(Override(text, place) for text in texts)) for name, texts in settings.items()]
        return Study("known-objects", "", tuple(rows), base=(Override("noise.groups=1", place),))


class Result(NamedTuple):
    """One finished training, in percent."""

    trial: Trial
    ap: float
    cond: float | None  # with the known objects given


def known_objects(
    preset: str,
    overrides: Sequence[str],
    *,
    split: float,
    unknown: Sequence[str],
    seed: int,
    seeds: int,
    jobs: int,
    out: Path | None,
    dry_run: bool,
) -> None:
    """Train what is not trained yet into `out`, evaluate with known objects, show and write the table.

    `split` is the share of classes that are known; `unknown` names the others instead. Seeds are `seed` and the next ones.
    Raises UserError before anything starts.
    """
    names = class_names(preset, overrides)
    splits = [Split(s, choose(names, split, unknown, s)) for s in range(seed, seed + seeds)]
    out = out or Path("runs") / f"known-objects-{f'{split:g}' if not unknown else 'named'}-{Path(preset).stem}"
    trials = [trial for s in splits for trial in plan_trials(s.study, preset, overrides, [s.seed], out)]
    check_folders(trials)
    for s in splits:
        say(f"seed {s.seed}: unknown {', '.join(s.unknown)}; known {', '.join(n for n in names if n not in s.unknown)}")
    say(f"{len(trials)} runs in {out}, {sum(trial.finished for trial in trials)} of them finished")
    if dry_run:
        return
    try:
        train_all(trials, out, jobs=jobs)
    finally:
        show([result(trial) for trial in trials if trial.finished], None if unknown else split, splits, out)


def class_names(preset: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """The classes of the data that the settings name."""
    config = load_preset(preset, overrides).config
    return load_split(find_dataset(config.data, config.train.seed), "train").categories.names


def choose(names: Sequence[str], split: float, unknown: Sequence[str], seed: int) -> tuple[str, ...]:
    """The unknown classes: those named, or 1 - `split` of all, drawn by the seed. At least one is known, and one is not."""
    wrong = [name for name in unknown if name not in names]
    if wrong:
        raise UserError(f"--unknown {', '.join(wrong)}: no class of the data, which has {', '.join(names)}")
    if len(names) < 2 or len(unknown) == len(names):
        raise UserError(f"of {len(names)} classes at least one must be known and one unknown")
    if unknown:
        return tuple(name for name in names if name in unknown)
    count = min(max(1, round((1 - split) * len(names))), len(names) - 1)
    drawn = random.Random(seed).sample(list(names), count)
    return tuple(name for name in names if name in drawn)


def result(trial: Trial) -> Result:
    """AP after the last epoch; AP(Cond), where the detector knows what to make of known objects, from the same weights."""
    told = trial.resolved.config.task.name == "known_objects"
    return Result(trial, percent(trial.records()[-1]["ap"]), conditional(trial) if told else None)


def conditional(trial: Trial) -> float:
    """AP(Cond) of the last epoch in percent, measured once and kept in the run folder."""
    file = trial.folder / "eval" / "known_objects.json"
    checkpoint = load_checkpoint(trial.folder, prefer="last.pt")
    kept = json.loads(file.read_text()) if file.exists() else {}
    if kept.get("epoch") != checkpoint.epoch:
        config, categories = from_tree(checkpoint.config, str(trial.folder)), categories_of(checkpoint)
        ask = GivenObjects(labels_of(config, categories), len(categories))
        found = measure(checkpoint, config, trial.folder, {"known objects told": ask})
        kept = {"epoch": checkpoint.epoch, **found["known objects told"].metrics}
        replace_text(file, json.dumps(kept, indent=2) + "\n")
    return percent(kept["ap"])


def show(results: Sequence[Result], split: float | None, splits: Sequence[Split], out: Path) -> None:
    """The table on the console, and in `out` as known-objects.md and known-objects.csv."""
    if not results:
        return say("no run is finished yet")
    cells, claims = lines(results, split), answers(compare(results, split))
    console.print(as_table(COLUMNS, cells))
    say("")
    console.print(as_table(QUESTIONS, claims))
    say(RULE)
    about = "AP in percent on the unknown classes, after the last epoch: mean and sample standard deviation over the seeds."
    chosen = "\n".join(f"- seed {s.seed}: unknown are {', '.join(s.unknown)}" for s in splits)
    page = ["# Known object detection (Table 9)", about, as_pipes(COLUMNS, cells), as_pipes(QUESTIONS, claims), RULE, chosen]
    runs = [
        {
            "detector": r.trial.row.name,
            "seed": r.trial.seed,
            "ap": number(r.ap),
            "ap_cond": r.cond and number(r.cond),
            "run": r.trial.folder,
        }
        for r in results
    ]
    with writable(out):
        replace_text(out / "known-objects.md", "\n\n".join(page) + "\n")
        save_csv(out / "known-objects.csv", runs)
    say(f"written to {out}: known-objects.md, known-objects.csv")


def compare(results: Sequence[Result], split: float | None) -> list[Comparison]:
    """The paper's two claims of Table 9, and between them what the known objects do that denoising alone does not."""
    baseline, told, cond = PAPER.get(split, (None, None, None))
    ap = {(r.trial.row.name, r.trial.seed): r.ap for r in results}
    given = {r.trial.seed: r.cond for r in results if r.cond is not None}
    seeds = sorted(given)
    against = [[ap[NAMES[2], s] - ap[name, s] for s in seeds if (name, s) in ap] for name in NAMES[:2]]
    gain = [given[s] - ap[NAMES[2], s] for s in seeds]
    return [
        paired(f"{NAMES[2]} > {NAMES[0]}", against[0], told - baseline if told else None),
        paired(f"{NAMES[2]} > {NAMES[1]}", against[1]),
        paired("with known objects given > without", gain, cond - told if told else None),
    ]


def lines(results: Sequence[Result], split: float | None) -> list[tuple[str, ...]]:
    """A line for each detector. The paper's numbers are of COCO, and of its two splits only."""
    baseline, told, cond = (f"{ap:.1f}" for ap in PAPER[split]) if split in PAPER else ("", "", "")
    paper = {NAMES[0]: (baseline, ""), NAMES[1]: ("", ""), NAMES[2]: (told, cond)}
    found = []
    for name in NAMES:
        own = [r for r in results if r.trial.row.name == name]
        given = [r.cond for r in own if r.cond is not None]
        cells = (mean_and_spread([r.ap for r in own], 1), mean_and_spread(given, 1) if given else "")
        found.append((name, str(len(own)), *cells, *paper[name]))
    return found
