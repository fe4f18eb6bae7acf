"""How long a study will take: from its own finished epochs, else from some steps that are measured now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from dndetr.ablation.runs import Trial
from dndetr.ablation.study import duration, threads
from dndetr.config import Config
from dndetr.console import UserError
from dndetr.tasks import Task, build_task
from dndetr.training import distributed
from dndetr.training.learner import Learner
from dndetr.training.prepare import build_model, load_data

WARM_UP, STEPS, LONGEST = 2, 8, 20.0  # steps that do not count, steps that do, and seconds for all of them


def estimate(trials: Sequence[Trial], jobs: int) -> str:
    """One sentence: how long what is left will take, and how that is known."""
    left = [trial.epochs - len(trial.records()) for trial in trials]
    if not any(left):
        return "all runs are finished"
    known = seconds_per_epoch(trials)
    if known:
        everywhere = statistics.mean(known.values())
        total = sum(epochs * known.get(trial.row.slug, everywhere) for trial, epochs in zip(trials, left, strict=True))
        how = "from the epochs done so far"
    else:
        first = trials[0]
        try:
            seconds = measure(first.resolved.config, jobs)
        except UserError as error:
            return f"time: unknown, {error}"
        total = seconds * sum(left)
        how = f"from some steps of {first.row.slug}, measured now; evaluation comes on top"
    return f"time: about {duration(total / jobs)}, {how}"


def seconds_per_epoch(trials: Sequence[Trial]) -> dict[str, float]:
    """The mean over the recorded epochs of each row, by its slug; without rows that have none."""
    seconds: dict[str, list[float]] = {}
    for trial in trials:
        seconds.setdefault(trial.row.slug, []).extend(record["seconds"] for record in trial.records())
    return {slug: statistics.mean(values) for slug, values in seconds.items() if values}


def measure(config: Config, jobs: int) -> float:
    """Seconds of an epoch's steps: the median of some steps, with this process's share of the cores.

    Raises UserError for data that cannot be read.
    """
    config = replace(config, data=replace(config.data, workers=0))
    before = torch.get_num_threads()
    if jobs > 1:
        torch.set_num_threads(min(before, threads(jobs)))
    try:
        with distributed.processes(config.train.device) as device:
            data = load_data(config)
            learner = Learner(config, build_model(config, data.categories, device), device, len(data.batches))
            task = build_task(config, data.categories)
            return len(data.batches) * statistics.median(step_seconds(learner, data.batches, task))
    finally:
        torch.set_num_threads(before)


def step_seconds(learner: Learner, batches, task: Task) -> list[float]:
    """Seconds of the measured steps, reading the images included; of the very first one where there is time for no other."""
    batches.set_epoch(1, 0)
    learner.model.train()
    taken, begun = [], time.perf_counter()
    start = begun
    for parts in batches:
        losses = learner.step(parts, task)
        if losses is not None:
            losses["loss"].item()  # waits for a GPU
        taken.append(time.perf_counter() - start)
        start = time.perf_counter()
        if len(taken) == WARM_UP + STEPS or start - begun > LONGEST:
            break
    return taken[WARM_UP:] or taken[-1:]
