"""What learns: the detector with its optimiser, averaged weights and loss scaling, one step at a time."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.data.loader import Part
from dndetr.models.criterion import Criterion, Losses, Wanted
from dndetr.models.denoising.queries import Known
from dndetr.models.matcher import Matcher
from dndetr.models.structures import Images
from dndetr.tasks import Task
from dndetr.training import distributed
from dndetr.training.checkpoint import Checkpoint, load_weights
from dndetr.training.optim import build_optimizer, rate_factor, set_rate
from dndetr.training.precision import autocast, check_precision, in_fp32

logger = logging.getLogger("dndetr")
REMEDY = "try a lower train.lr, more train.warmup_steps or train.precision=fp32"
SHOWN = 8  # image ids in a message
SMALLEST_SCALE = 1e-3  # of fp16 losses: what still overflows then is hopeless


@dataclass(frozen=True)
class Incident:
    """A step whose loss or gradient is not finite, with all that is needed to compute it again."""

    step: int  # 1 is the first
    reason: str
    losses: dict[str, Tensor]  # of this process
    parts: Sequence[Part]
    objects: list[float]  # the normalisers
    model: nn.Module  # as before the step

    @property
    def ours(self) -> bool:
        """Whether it was a loss of this process."""
        return bool(not_finite(self.losses))


class NotFinite(distributed.Agreed):
    """Training has come to numbers that are not finite, in every process at once."""

    code = 3


class Learner:
    """Takes steps. A step's batch comes in parts, whose losses share one normaliser: the objects of the whole batch.

    So parts, and processes, make no difference to the gradient but rounding (except where batch norm learns, which sees
    one part at a time). A step whose loss or gradient is not finite changes nothing; `tell`, which may be set to what receives
    its Incident and returns where it was kept, is called before it is passed over (train.skip_nonfinite) or raised as
    NotFinite.
    """

    def __init__(self, config: Config, model: nn.Module, device: torch.device, steps_per_epoch: int):
        check_precision(config, device)
        self.config, self.device, self.steps_per_epoch = config.train, device, steps_per_epoch
        self.step_count, self.skipped, self.unmatched = 0, 0, ""
        self.tell: Callable[[Incident], str] = lambda incident: ""
        self.model = model.to(device)
        self.statistics = [b for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False)]
        self.optimizer = build_optimizer(self.model, config.train)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.criterion = Criterion(config.loss, Matcher(config.match))
        self.scaler = torch.amp.GradScaler("cuda", enabled=config.train.precision == "fp16")
        self.parallel = parallel(self.model, device)
        self.ema = None
        if config.train.ema:
            self.ema = AveragedModel(self.model, multi_avg_fn=follow(config.train.ema))

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and used: the averaged one where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def rate(self) -> float:
        """The learning rate of everything but the backbone."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, parts: Sequence[Part], task: Task) -> dict[str, Tensor] | None:
        """One update from the parts of a batch; returns this process's losses by name, summed over the parts.

        None where the step was passed over.
        """
        seed_step(self.config.seed, self.step_count, distributed.rank())
        set_rate(self.optimizer, rate_factor(self.step_count, self.steps_per_epoch, self.config))
        asked = [task([target.to(self.device, non_blocking=True) for target in targets]) for _, targets in parts]
        objects = self.count([wanted for _, wanted in asked])
        statistics, self.unmatched = [buffer.clone() for buffer in self.statistics], ""
        losses = []
        for i, ((images, _), (known, wanted)) in enumerate(zip(parts, asked, strict=True)):
            last = i == len(parts) - 1
            with nullcontext() if last or self.parallel is self.model else self.parallel.no_sync():
                losses.append(self.backward(images, known, wanted, objects))
        total = add(losses)
        reason = self.update(total)
        if reason is None:
            return total
        for buffer, before in zip(self.statistics, statistics, strict=True):
            buffer.copy_(before)
        self.pass_over(Incident(self.step_count, reason, total, parts, objects.tolist(), self.model))
        return None

    def count(self, asked: Sequence[Wanted]) -> Tensor:
        """The normalisers of a step (4,): objects to find, objects to reconstruct, images, and objects in them, averaged over
        processes.
        """
        found, told, present = (
            [sum(len(t.labels) for t in targets) for targets in objects]
            for objects in zip(*((w.targets, w.reconstructed, w.proposed) for w in asked), strict=True)
        )
        counts = list(zip(found, told, [len(w.targets) for w in asked], present, strict=True))
        mean = distributed.all_mean(torch.tensor(counts, dtype=torch.float32, device=self.device).sum(0))
        return mean.clamp(min=1 / distributed.world())

    def backward(self, images: Images, known: Known | None, wanted: Wanted, objects: Tensor) -> dict[str, Tensor]:
        images = images.to(self.device, non_blocking=True)
        with autocast(self.config.precision, self.device):
            output = self.parallel(images, known)
        try:
            losses = self.criterion(in_fp32(output), wanted, *objects)
        except FloatingPointError as error:  # nothing can be matched: a gradient of NaN tells the other processes
            self.unmatched = str(error)
            every = [output] if output.proposals is None else [output, output.proposals]
            total = sum(each.logits.sum() + each.boxes.sum() for each in every) * math.nan
            total.backward()
            return {"loss": total.detach()}
        sound = torch.where(losses.total.detach().isfinite(), 1.0, math.nan)  # else all processes must see it, as above
        self.scaler.scale(losses.total * sound).backward()
        return by_name(losses)

    def update(self, losses: dict[str, Tensor]) -> str | None:
        """Change the weights, or say why not. Gradients are shared, so every process comes to the same verdict."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        reason = None if norm.isfinite() else self.verdict(losses)
        if reason is None:
            self.scaler.step(self.optimizer)  # fp16 leaves steps out by itself until its scale fits
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        if self.ema is not None and reason is None:
            self.ema.update_parameters(self.model)
        return reason

    def verdict(self, losses: dict[str, Tensor]) -> str | None:
        """Why a gradient is not finite; None where that is but the overflow of fp16."""
        bad = not_finite(losses)
        mine = self.unmatched or (bad and f"not finite: {', '.join(bad)}")
        for reason in distributed.gather(mine):
            if reason:
                return reason
        hopeless = not self.scaler.is_enabled() or self.scaler.get_scale() < SMALLEST_SCALE
        return "the gradient is not finite" if hopeless else None

    def pass_over(self, incident: Incident) -> None:
        """Tell of a step that was left out. Raises NotFinite where there were too many."""
        self.skipped += 1
        ids = [target.image_id for _, targets in incident.parts for target in targets]
        shown = ", ".join(map(str, ids[:SHOWN])) + ("" if len(ids) <= SHOWN else f" and {len(ids) - SHOWN} more")
        told = distributed.gather((not incident.ours, shown, self.tell(incident)))  # every process says what one of them knows
        _, shown, kept = min(told, key=lambda each: each[0])
        what = f"step {incident.step}: {incident.reason} (image ids {shown}), no weight was changed"
        if self.skipped > self.config.skip_nonfinite:
            raise NotFinite(f"{what}; {REMEDY}{kept and f'; {kept}'}")
        logger.warning("%s%s", what, kept and f"; {kept}")

    def state(self) -> dict[str, object]:
        """The fields of a Checkpoint that belong to the learner."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step_count,
            "steps_per_epoch": self.steps_per_epoch,
            "skipped": self.skipped,
        }

    def restore(self, checkpoint: Checkpoint, source: str | Path) -> None:
        """Go on from a checkpoint. Raises UserError where it is of another detector."""
        load_weights(self.model, checkpoint.model, source)
        settings = [{key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
        except (ValueError, KeyError) as error:
            raise UserError(f"{source}: its optimiser does not fit these settings: {error}") from error
        for group, mine in zip(self.optimizer.param_groups, settings, strict=True):
            group |= mine  # rates may have been changed on purpose
        if checkpoint.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.scaler)
        self.step_count, self.skipped = checkpoint.step, checkpoint.skipped
        set_rate(self.optimizer, rate_factor(max(self.step_count - 1, 0), self.steps_per_epoch, self.config))
        if self.ema is not None:
            load_weights(self.ema.module, checkpoint.weights, source)
            self.ema.n_averaged.fill_(max(0, checkpoint.step - checkpoint.skipped))


def follow(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """How averaged weights move: by 1 - `decay` a step, faster at first, so that they soon forget how they began."""

    def move(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        share = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averaged, current, share)

    return move


def seed_step(seed: int, step: int, rank: int) -> None:
    """Let what a step draws (dropout) follow from the seed, the step and the process alone, whatever draws it."""
    state = np.random.SeedSequence((seed, step, rank)).generate_state(2, np.uint64)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]) % 2**32)
    random.seed(int(state[1]))


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as the processes train it together; alone, the model itself."""
    if distributed.world() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def by_name(losses: Losses) -> dict[str, Tensor]:
    """`loss` is the weighted sum of everything, `dn_loss` the share of denoising in it; the parts are unweighted."""
    return {"loss": losses.total.detach(), "dn_loss": losses.denoising, **losses.parts}


def not_finite(losses: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in losses.items() if not value.isfinite()]


def add(losses: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(losses) == 1:
        return losses[0]
    names = min(losses, key=len)  # of a part without a matching there is but the loss
    return {name: torch.stack([part[name] for part in losses]).sum(0) for name in names}
