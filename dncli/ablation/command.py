"""`dndetr ablate` from its words: plan, refuse what cannot work, train what is left, show what is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dndetr.ablation.estimate import estimate
from dndetr.ablation.plan import read_study
from dndetr.ablation.report import command_line, show_plan, show_results
from dndetr.ablation.runs import check_folders, plan_trials
from dndetr.ablation.study import RunsFailed, train_all
from dndetr.console import say
from dndetr.training.signals import Stopped


def ablate(
    name: str,
    preset: str | None,
    overrides: Sequence[str],
    *,
    seeds: int,
    first_seed: int,
    jobs: int,
    out: Path | None,
    dry_run: bool,
) -> None:
    """Train every row of the study `name` with `seeds` seeds into `out`, and show and write the results.

    What is finished is not trained again, what is begun is resumed. Raises UserError before anything starts, RunsFailed
    where a run failed, and Stopped after Ctrl-C; what is known by then is shown in any case.
    """
    study = read_study(name)
    preset = preset or study.preset
    stem = Path(preset).stem
    out = out or Path("runs") / f"ablate-{study.name}-{stem}"
    trials = plan_trials(study, preset, overrides, range(first_seed, first_seed + seeds), out)
    check_folders(trials)
    show_plan(study, trials, stem, out)
    if dry_run:
        return say(estimate(trials, jobs))
    options = {"--preset": preset, "--seeds": str(seeds), "--first-seed": str(first_seed), "--out": str(out)}
    command = command_line(name, options, overrides)
    end = None
    try:
        train_all(trials, out, jobs=jobs)
    except (Stopped, RunsFailed) as error:
        end = error
    show_results(study, trials, stem, out, command)
    if end is not None:
        say("the same command trains what is left")
        raise end
