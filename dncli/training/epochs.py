"""Epoch after epoch: train, evaluate, keep. What is kept is enough to go on after any step as if nothing had happened."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dndetr.analysis.instability import difference, instability
from dndetr.asking import build_ask
from dndetr.config import Config
from dndetr.data.images import reading_of
from dndetr.data.loader import Part
from dndetr.files import replace_text
from dndetr.models.matcher import Matcher
from dndetr.plots import plot_run
from dndetr.resolve import to_tree
from dndetr.tasks import build_task
from dndetr.training import distributed
from dndetr.training.checkpoint import Checkpoint, save_checkpoint
from dndetr.training.evaluate import METRICS, Evaluation, evaluate
from dndetr.training.learner import Learner, NotFinite
from dndetr.training.pictures import draw_samples
from dndetr.training.prepare import Data
from dndetr.training.report import COUNTED, Report, Waiting, ending, epoch_line, memory
from dndetr.training.run import Run
from dndetr.training.signals import Stop, Stopped

STATUS_SECONDS = 0.5  # between looks at the losses, for which a GPU must be waited for


@dataclass
class Begun:
    """An epoch so far, as this process sees it."""

    names: list[str] = field(default_factory=list)  # of the losses
    sums: Tensor | None = None  # of each of them over the steps
    steps: int = 0  # that are in the sums: those whose losses were finite
    seconds: float = 0.0
    waited: float = 0.0  # of these, for images

    def add(self, losses: dict[str, Tensor]) -> None:
        values = torch.stack(list(losses.values()))
        self.names, self.sums = list(losses), values if self.sums is None else self.sums + values
        self.steps += 1

    @property
    def wait_share(self) -> float:
        """The share of the time that went into waiting for images."""
        return self.waited / max(self.seconds, 1e-9)

    def mean(self) -> dict[str, float]:
        """Every loss, averaged over steps and processes."""
        return dict(zip(self.names, distributed.all_mean(self.sums / self.steps).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """As plain values with the sums of every process. Every process must ask."""
        everyones = distributed.gather(None if self.sums is None else self.sums.cpu())
        return {**vars(self), "sums": everyones}

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device) -> Begun:
        """The share of this process; of another number of processes the first one takes it all."""
        if not state:
            return cls()
        rank, world, sums = distributed.rank(), distributed.world(), state["sums"]
        if sums[0] is None or world == len(sums):
            mine = sums[rank % len(sums)]
        else:
            mine = torch.stack(sums).sum(0) * (world / len(sums) if rank == 0 else 0)
        return cls(**{**state, "sums": None if mine is None else mine.to(device)})


class Training:
    """A run on its way. `done` epochs are complete; the learner may be some steps into the next one, see `begun`."""

    def __init__(self, config: Config, data: Data, learner: Learner, run: Run, report: Report, checkpoint: Checkpoint | None):
        self.config, self.data, self.learner, self.run, self.report = config, data, learner, run, report
        self.task, self.ask = build_task(config, data.categories), build_ask(config, data.categories)
        self.matcher = Matcher(config.match)
        self.done = 0 if checkpoint is None else checkpoint.epoch
        self.best = None if checkpoint is None else checkpoint.best_ap
        self.begun = Begun.restored({} if checkpoint is None else checkpoint.begun, learner.device)
        self.stop = Stop()

    def go(self) -> None:
        """Train to the last epoch, if that is not done. Raises Stopped, where a signal asked for it, when all is saved."""
        if self.done == self.config.train.epochs:  # killed when nothing was left to do; torchrun starts it again
            self.report.say(f"all {self.done} epochs are done; raise train.epochs to go on")
        with self.stop:
            while self.done < self.config.train.epochs:
                self.epoch()
        if distributed.is_main():
            self.report.say(ending(self.run.records(), self.run.path, self.data.validation.split.mended))

    def epoch(self) -> None:
        epoch, learner = self.done + 1, self.learner
        losses = self.train(epoch)
        lr, start = learner.rate, time.perf_counter()
        evaluation = None
        if epoch % self.config.eval.every == 0 or epoch == self.config.train.epochs:
            self.save()  # an evaluation may be long
            evaluation = self.evaluate(epoch)
        self.done, begun, self.begun = epoch, self.begun, Begun()
        if distributed.is_main():
            record = {"epoch": epoch, "step": learner.step_count, "seconds": 0.0, "lr": lr, **losses}
            record |= {"data_wait": round(begun.wait_share, 4), "skipped": learner.skipped}
            record |= measures(evaluation, self.run, epoch)
            if self.config.eval.detections != COUNTED:
                record["detections"] = self.config.eval.detections
            record["seconds"] = round(begun.seconds + time.perf_counter() - start, 3)
            self.keep(record, evaluation)
            self.report.say(epoch_line(record, self.config.train.epochs))
        if self.done < self.config.train.epochs:
            self.leave_if_asked(saved=True)

    def train(self, epoch: int) -> dict[str, float | None]:
        """What is left of one pass over the training images; returns every loss, averaged over steps and processes."""
        learner, begun, task = self.learner, self.begun, self.task.at(epoch)
        batches, before = self.data.batches, learner.step_count - self.done * self.learner.steps_per_epoch
        batches.set_epoch(epoch, before)
        learner.model.train()
        waiting, start, shown = Waiting(batches, begun.waited), time.perf_counter() - begun.seconds, 0.0
        with self.report.progress() as progress:
            title = f"epoch {epoch}/{self.config.train.epochs}"
            bar = progress.add_task(title, total=len(batches), completed=before, status="")
            for parts in waiting:
                losses = learner.step(parts, task)
                if losses is not None:
                    begun.add(losses)
                begun.seconds, begun.waited = time.perf_counter() - start, waiting.seconds
                progress.advance(bar)
                if losses is not None and not progress.disable and time.perf_counter() - shown > STATUS_SECONDS:
                    progress.update(bar, status=status(losses, learner, begun))
                    shown = time.perf_counter()
                self.leave_if_asked()
                every = self.config.train.save_steps
                if every and learner.step_count % every == 0:
                    self.save()
        if not begun.steps:
            raise NotFinite(f"epoch {epoch}: not one step had a finite loss; see the batches in {self.run.nonfinite}")
        distributed.share_buffers(learner.evaluated)
        losses = begun.mean()
        return losses if self.config.noise is not None else {**losses, "dn_loss": None}  # absent, not 0

    def leave_if_asked(self, *, saved: bool = False) -> None:
        """Where any process received a signal, save and raise Stopped in all of them."""
        number = self.stop.agreed()
        if number:
            if not saved:
                self.save()
            where = f"stopped after step {self.learner.step_count}"
            self.report.say(f"{where}; go on with: dndetr train --resume {self.run.path}")
            raise Stopped(number)

    def evaluate(self, epoch: int) -> Evaluation | None:
        valid, config = self.data.validation, self.config
        batches = self.report.track(valid.batches, f"epoch {epoch}/{config.train.epochs}, evaluation")
        return evaluate(
            self.learner.evaluated,
            self.watched(batches),
            valid.truth,
            self.data.categories.ids,
            self.matcher,
            ask=self.ask,
            top=config.eval.top,
            counter=config.eval.counter,
            most=config.eval.detections,
            precision=config.eval.precision,
            device=self.learner.device,
        )

    def watched(self, batches: Iterable[Part]) -> Iterator[Part]:
        """Pass batches on until a signal comes. Several processes go on: they could not agree on where to stop."""
        for batch in batches:
            if distributed.world() == 1:
                self.leave_if_asked(saved=True)
            yield batch

    def keep(self, record: dict[str, Any], evaluation: Evaluation | None) -> None:
        """Write down one epoch. The checkpoint `last` comes at the very end: what it does not know of, resuming drops."""
        run = self.run
        better = record["ap"] is not None and (self.best is None or record["ap"] >= self.best)  # of equals the most trained
        self.best = record["ap"] if better else self.best
        checkpoint = self.checkpoint({})
        with run.writing():
            if evaluation is not None:
                run.save_matches(record["epoch"], evaluation.matches)
            if better:
                replace_text(run.detections, json.dumps(evaluation.detections))
                valid = self.data.validation
                draw_samples(valid.split, valid.truth, evaluation.detections, run.predictions, reading_of(self.config.data))
            run.record(record)
            plot_run(run.records(), run.plots)
            if better:
                save_checkpoint(run.best, checkpoint)
            every = self.config.train.keep_every
            if every and record["epoch"] % every == 0:
                save_checkpoint(run.kept(record["epoch"]), checkpoint)
            save_checkpoint(run.last, checkpoint, run.previous)

    def save(self) -> None:
        """Write the checkpoint `last`, in the middle of an epoch."""
        begun = self.begun.state()
        if distributed.is_main():
            with self.run.writing():
                save_checkpoint(self.run.last, self.checkpoint(begun), self.run.previous)

    def checkpoint(self, begun: dict[str, Any]) -> Checkpoint:
        return replace(new_checkpoint(self.config, self.data, self.learner), epoch=self.done, begun=begun, best_ap=self.best)


def new_checkpoint(config: Config, data: Data, learner: Learner) -> Checkpoint:
    """The checkpoint of a run that has yet to make its first step."""
    return Checkpoint(
        **learner.state(),
        epoch=0,
        begun={},
        best_ap=None,
        config=to_tree(config),
        category_ids=list(data.categories.ids),
        category_names=list(data.categories.names),
        data=data.digests,
    )


def measures(evaluation: Evaluation | None, run: Run, epoch: int) -> dict[str, float | None]:
    """The evaluated columns of an epoch's record, None where nothing was measured.

    Instability compares with the evaluation before, which is the epoch before where eval.every is 1 (Eq. 2). It is not
    measured where the two are of different images, as after a change of the dataset.
    """
    if evaluation is None:
        return dict.fromkeys((*METRICS, "instability", "anchor_distance"))
    previous = run.previous_matches(epoch)
    comparable = previous is not None and not difference(previous, evaluation.matches)
    changed = instability(previous, evaluation.matches) if comparable else None
    return {**evaluation.metrics, "instability": changed, "anchor_distance": evaluation.anchor_distance}


def status(losses: dict[str, Tensor], learner: Learner, begun: Begun) -> str:
    """The right end of the progress bar."""
    shown = [f"loss {losses['loss'].item():.2f}"]
    if "dn_cls_0" in losses:
        shown.append(f"dn {losses['dn_loss'].item():.2f}")
    return " ".join([*shown, f"lr {learner.rate:.0e}", memory(learner.device), f"wait {begun.wait_share:.0%}"])
