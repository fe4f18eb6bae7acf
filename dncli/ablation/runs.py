"""The runs of a study: every row with every seed, its settings, and what is done of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dndetr.ablation.plan import Override, Row, Study
from dndetr.console import UserError, brief
from dndetr.resolve import Resolved, find_preset, leaves, load_preset, read_preset, shown, to_tree, validated
from dndetr.resolve import source_of as source
from dndetr.settings import Place, is_among, merge, parse_override
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.resume import FREE
from dndetr.training.run import Run, check_free

MAY_DIFFER = tuple(key for key in FREE if key != "train.epochs")  # from the plan, in a run that is there already


@dataclass(frozen=True)
class Trial:
    """One row, trained with one seed into a run folder of its own."""

    row: Row
    seed: int
    resolved: Resolved
    folder: Path  # DIR/ROW/seed-N

    @property
    def name(self) -> str:
        return f"{self.row.slug}/seed-{self.seed}"

    @property
    def settings(self) -> Path:
        """The file of settings that the run is trained with."""
        return self.folder.with_name(f"seed-{self.seed}.yaml")

    @property
    def log(self) -> Path:
        """What the training said."""
        return self.folder.with_name(f"seed-{self.seed}.log")

    @property
    def epochs(self) -> int:
        return self.resolved.config.train.epochs

    @property
    def begun(self) -> bool:
        """Whether there is something to resume."""
        return (self.folder / "config.yaml").is_file()

    def records(self) -> list[dict[str, Any]]:
        """The metrics of every epoch so far, none of a run that is not begun."""
        return Run(self.folder).records() if self.begun else []

    @property
    def finished(self) -> bool:
        """Whether the last epoch is recorded, and the last checkpoint, which is written after that, holds it."""
        records = self.records()
        if not records or records[-1]["epoch"] < self.epochs:
            return False
        run = Run(self.folder)
        later = run.last.exists() and run.last.stat().st_mtime_ns >= run.metrics.stat().st_mtime_ns
        return later or load_checkpoint(self.folder, prefer="last.pt").epoch >= self.epochs


def plan_trials(study: Study, preset: str, overrides: Sequence[str], seeds: Sequence[int], out: Path) -> list[Trial]:
    """Every run of the study, all rows of a seed before the next seed.

    `overrides` hold for all rows; a row's own settings win. Raises UserError with all mistakes of all rows at once.
    """
    if any(text.partition("=")[0].strip() == "train.seed" for text in overrides):
        raise UserError("train.seed is what the runs of a row differ in: give it by --seeds and --first-seed")
    find_preset(preset)
    given = [Override(text, Place(2, order, f"override {text!r}")) for order, text in enumerate(overrides)]
    trials, mistakes = [], []
    for seed in seeds:
        own = [Override(f"train.seed={seed}", Place(4, 0, "--first-seed")), Override("paper=null", Place(4, 1, "the study"))]
        for row in study.rows:
            try:
                resolved = resolve(preset, [*study.base, *given, *row.set, *own], row.epochs)
            except UserError as error:
                mistakes += error.lines
                continue
            trials.append(Trial(row, seed, resolved, out / row.slug / f"seed-{seed}"))
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))
    return trials


def resolve(preset: str, overrides: Sequence[Override], share: float = 1.0) -> Resolved:
    """A preset with overrides of which each knows its place, trained for a share of its epochs, with the same schedule.

    Raises UserError with every mistake at once.
    """
    path = find_preset(preset)
    settings, mistakes = read_preset(path)
    for override in overrides:
        given, wrong = parse_override(*override)
        settings, mistakes = merge(settings, given), mistakes + wrong
    config = validated(settings, mistakes, Place(1, 0, shown(path)))
    if share != 1:
        epochs = max(1, round(share * config.train.epochs))
        place = Place(4, 2, f"epochs: {share:g} of {config.train.epochs}")
        scaled = (f"train.epochs={epochs}", f"train.drop_epoch={share * config.train.drop_epoch}")
        return resolve(preset, [*overrides, *(Override(text, place) for text in scaled)])
    tree = to_tree(config)
    return Resolved(config, {key: source(key, settings) for key in leaves(tree)}, tree)


def check_folders(trials: Sequence[Trial]) -> None:
    """Refuse folders that hold something else, and runs whose settings are not the plan's: all differences at once."""
    found: dict[str, list[str]] = {}  # difference -> names of runs
    for trial in trials:
        if not trial.begun:
            check_free(trial.folder, overwrite=False)
            continue
        for difference in differences(trial):
            found.setdefault(difference, []).append(trial.name)
    if found:
        out = trials[0].folder.parent.parent
        lines = [f"  {difference} ({brief(', '.join(names), 80)})" for difference, names in found.items()]
        raise UserError(f"{out}: there are runs with other settings than these; choose another folder with --out:", *lines)


def differences(trial: Trial) -> list[str]:
    """What the run that is there was trained with, and the plan says otherwise."""
    before, now = leaves(load_preset(trial.folder / "config.yaml").tree), leaves(trial.resolved.tree)
    if now["data.range"] == "auto":  # became what the training images show when the run began
        now["data.range"] = before["data.range"]
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys if not is_among(key, MAY_DIFFER)]
