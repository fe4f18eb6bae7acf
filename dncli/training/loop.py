"""The training loop: one for every task, host and number of processes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dncli.analysis import instability
from dncli.config import Config
from dncli.console import UserError
from dncli.data.loader import TrainLoader
from dncli.plots import plot_run
from dncli.presets import Resolved, leaves, to_tree
from dncli.tasks import Detection, Task
from dncli.training import distributed
from dncli.training.checkpoint import Checkpoint, checkpoint_bytes, load_checkpoint, save_checkpoint
from dncli.training.evaluate import METRICS, Evaluation, counter_class, evaluate
from dncli.training.learner import Learner
from dncli.training.pictures import draw_samples
from dncli.training.precision import check_precision
from dncli.training.prepare import Data, begin, build_model, load_data
from dncli.training.report import Report, Waiting, ending, epoch_line, memory, plan
from dncli.training.run import Run, check_free, create_run, reopen_run, replace_text
from models.matcher import Matcher

FREE_ON_RESUME = ("train.epochs", "train.device", "data.workers", "eval.counter", "op")  # what may differ from the checkpoint
STATUS_SECONDS = 0.5  # between looks at the losses, for which a GPU must be waited for
CHECKPOINTS_AT_ONCE = 3  # last, best, and the one being written


def train(
    resolved: Resolved,
    out: str | Path | None,
    *,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Train as `resolved` says into the run folder `out`, evaluating on the way; returns that folder.

    `resume` goes on with a run in its own folder after its last whole epoch, exactly as if it had never stopped (on a
    CPU, to the last bit); `init_from` takes only the weights of a run or checkpoint. Processes that torchrun started
    share each batch. Raises UserError for settings, data, weights or folders that do not work, before anything is
    overwritten.
    """
    config = resolved.config
    with distributed.processes(config.train.device) as device:
        check_precision(config, device)
        counter_class(config.eval.counter)  # must be installed
        checkpoint = load_checkpoint(resume, prefer="last.pt") if resume else None
        if checkpoint is None:
            check_free(Path(out), overwrite=overwrite)
        else:
            check_resumable(resume, checkpoint, config)
        data = load_data(config)
        torch.manual_seed(config.train.seed)
        model = build_model(config, data.categories, device)
        if checkpoint is None:
            weights = begin(model, config, data.categories, init_from)
        else:
            weights = f"of this run, after epoch {checkpoint.epoch}"
        learner = Learner(config, model, device, len(data.batches))
        run = open_run(config, learner, checkpoint, out, resume, overwrite)
        report = Report(run.log)
        report.say(plan(config, data, model, weights, device, run.path))
        try:
            loop(config, data, learner, run, report, checkpoint)
        except KeyboardInterrupt:
            kept = f"go on with: dndetr train --resume {run.path}"
            report.say(f"stopped; {kept if run.last.exists() else 'no epoch was complete, so there is nothing to go on with'}")
            raise
    return run.path


def loop(config: Config, data: Data, learner: Learner, run: Run, report: Report, checkpoint: Checkpoint | None) -> None:
    """Epoch after epoch: train, evaluate, keep."""
    task = Detection(config.noise, len(data.categories), config.train.seed)
    matcher = Matcher(config.match)
    best = None if checkpoint is None else checkpoint.best_ap
    epochs = config.train.epochs
    for epoch in range(1 if checkpoint is None else checkpoint.epoch + 1, epochs + 1):
        start = time.perf_counter()
        data.batches.set_epoch(epoch)
        losses = train_epoch(learner, data.batches, task.at(epoch), report, f"epoch {epoch}/{epochs}")
        if config.noise is None:
            losses["dn_loss"] = None  # absent, not 0
        evaluation = None
        if epoch % config.eval.every == 0 or epoch == epochs:
            batches = report.track(data.validation.batches, f"epoch {epoch}/{epochs}, evaluation")
            evaluation = evaluate(
                learner.evaluated,
                batches,
                data.validation.truth,
                data.categories.ids,
                matcher,
                top=config.eval.top,
                counter=config.eval.counter,
                precision=config.eval.precision,
                device=learner.device,
            )
        if distributed.is_main():
            record = {"epoch": epoch, "step": learner.step_count, "seconds": 0.0, "lr": learner.rate, **losses}
            record |= measures(evaluation, run, epoch)
            better = record["ap"] is not None and (best is None or record["ap"] > best)
            best = record["ap"] if better else best
            record["seconds"] = round(time.perf_counter() - start, 3)
            keep(config, data, learner, run, record, evaluation, best, better)
            report.say(epoch_line(record, epochs))
    if distributed.is_main():
        report.say(ending(run.records(), run.path))


def train_epoch(learner: Learner, batches: TrainLoader, task: Task, report: Report, title: str) -> dict[str, float]:
    """One pass over the training images; returns every loss, averaged over steps and processes, and `data_wait`, the share
    of this process's time that went into waiting for images."""
    learner.model.train()
    waiting, total, shown = Waiting(batches), None, 0.0
    with report.progress() as progress:
        bar = progress.add_task(title, total=len(batches), status="")
        for parts in waiting:
            losses = learner.step(parts, task)
            values = torch.stack(list(losses.values()))
            total = values if total is None else total + values
            progress.advance(bar)
            if not progress.disable and time.perf_counter() - shown > STATUS_SECONDS:
                progress.update(bar, status=status(losses, learner, waiting))
                shown = time.perf_counter()
    mean = distributed.all_mean(total / len(batches)).tolist()
    distributed.share_buffers(learner.evaluated)
    return {**dict(zip(losses, mean, strict=True)), "data_wait": round(waiting.share, 4)}


def keep(
    config: Config,
    data: Data,
    learner: Learner,
    run: Run,
    record: dict[str, Any],
    evaluation: Evaluation | None,
    best: float | None,
    better: bool,
) -> None:
    """Write down one epoch. The checkpoint `last` comes at the very end: what it does not know of, resuming drops."""
    checkpoint = Checkpoint(
        **learner.state(),
        epoch=record["epoch"],
        best_ap=best,
        config=to_tree(config),
        category_ids=list(data.categories.ids),
        category_names=list(data.categories.names),
    )
    try:
        if evaluation is not None:
            run.save_matches(record["epoch"], evaluation.matches)
        if better:
            replace_text(run.detections, json.dumps(evaluation.detections))
            valid = data.validation
            draw_samples(valid.split, valid.truth, evaluation.detections, run.predictions)
        run.record(record)
        plot_run(run.records(), run.plots)
        if better:
            save_checkpoint(run.best, checkpoint)
        save_checkpoint(run.last, checkpoint)
    except OSError as error:
        raise UserError(
            f"{run.path}: cannot be written: {error.strerror or error}; make room, then go on with --resume {run.path}"
        ) from error


def measures(evaluation: Evaluation | None, run: Run, epoch: int) -> dict[str, float | None]:
    """The evaluated columns of an epoch's record, None where nothing was measured.

    Instability compares with the evaluation before, which is the epoch before where eval.every is 1 (Eq. 2).
    """
    if evaluation is None:
        return dict.fromkeys((*METRICS, "instability", "anchor_distance"))
    previous = run.previous_matches(epoch)
    changed = None if previous is None else instability(previous, evaluation.matches)
    return {**evaluation.metrics, "instability": changed, "anchor_distance": evaluation.anchor_distance}


def open_run(
    config: Config,
    learner: Learner,
    checkpoint: Checkpoint | None,
    out: str | Path | None,
    resume: str | Path | None,
    overwrite: bool,
) -> Run:
    """A new run folder, or the resumed one with the learner as it was left."""
    room = CHECKPOINTS_AT_ONCE * checkpoint_bytes(learner.model, ema=learner.ema is not None)
    if checkpoint is None:
        distributed.on_main(lambda: create_run(Path(out), to_tree(config), room=room, overwrite=overwrite))
        return Run(Path(out))
    distributed.on_main(lambda: reopen_run(Path(resume), to_tree(config), checkpoint.epoch, room=room))
    learner.restore(checkpoint)
    return Run(Path(resume))


def check_resumable(run: str | Path, checkpoint: Checkpoint, config: Config) -> None:
    """Refuse to go on with other settings, all differences at once, or past the last epoch."""
    before, now = leaves(checkpoint.config), leaves(to_tree(config))
    changed = [
        f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_ON_RESUME
    ]
    if changed:
        raise UserError(
            f"{run}: --resume goes on with the settings of the run; these differ (--init-from takes its weights only):",
            *changed,
        )
    if checkpoint.epoch >= config.train.epochs:
        raise UserError(f"{run}: all {checkpoint.epoch} epochs are done; raise train.epochs to go on")


def status(losses: dict[str, Tensor], learner: Learner, waiting: Waiting) -> str:
    """The right end of the progress bar."""
    shown = [f"loss {losses['loss'].item():.2f}"]
    if "dn_cls_0" in losses:
        shown.append(f"dn {losses['dn_loss'].item():.2f}")
    shown += [f"lr {learner.rate:.0e}", memory(learner.device), f"wait {waiting.share:.0%}"]
    return " ".join(shown)
