"""What learns: the detector with its optimiser, averaged weights and loss scaling, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dncli.config import Config
from dncli.console import UserError
from dncli.data.loader import Part
from dncli.tasks import Task
from dncli.training import distributed
from dncli.training.checkpoint import Checkpoint
from dncli.training.optim import build_optimizer, rate_factor, set_rate
from dncli.training.precision import autocast, check_precision, in_fp32
from models.criterion import Criterion, Losses
from models.matcher import Matcher
from models.structures import Images, Target

REMEDY = "try a lower train.lr, more train.warmup_steps or train.precision=fp32"


class Learner:
    """Takes steps. A step's batch comes in parts, whose losses share one normaliser: the objects of the whole batch.

    So parts, and processes, make no difference to the gradient but rounding (except where batch norm learns, which sees
    one part at a time).
    """

    def __init__(self, config: Config, model: nn.Module, device: torch.device, steps_per_epoch: int):
        check_precision(config, device)
        self.config, self.device, self.steps_per_epoch, self.step_count = config.train, device, steps_per_epoch, 0
        self.model = model.to(device)
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

    def step(self, parts: Sequence[Part], task: Task) -> dict[str, Tensor]:
        """One update from the parts of a batch; returns this process's losses by name, summed over the parts."""
        seed_step(self.config.seed, self.step_count)
        set_rate(self.optimizer, rate_factor(self.step_count, self.steps_per_epoch, self.config))
        count = sum(len(target.labels) for _, targets in parts for target in targets)
        objects = distributed.all_mean(torch.tensor(float(count), device=self.device))
        losses = []
        for i, (images, targets) in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last or self.parallel is self.model else self.parallel.no_sync():
                losses.append(self.backward(images, targets, task, objects))
        total = add(losses)
        self.update(total, [target.image_id for _, targets in parts for target in targets])
        return total

    def backward(self, images: Images, targets: list[Target], task: Task, objects: Tensor) -> dict[str, Tensor]:
        images = images.to(self.device, non_blocking=True)
        targets = [target.to(self.device, non_blocking=True) for target in targets]
        known, wanted = task(targets)
        with autocast(self.config.precision, self.device):
            output = self.parallel(images, known)
        try:
            losses = self.criterion(in_fp32(output), wanted, objects)
        except FloatingPointError as error:
            raise UserError(f"step {self.step_count + 1}: {error}; {REMEDY}") from error
        self.scaler.scale(losses.total).backward()
        return by_name(losses)

    def update(self, losses: dict[str, Tensor], image_ids: list[int]) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip or float("inf"))
        # fp16 skips steps until its scale fits. Gradients are shared, so every process comes to the same verdict.
        hopeless = self.scaler.get_scale() < 1e-3 if self.scaler.is_enabled() else not norm.isfinite()
        if hopeless:
            self.refuse(losses, image_ids)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_count += 1
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def refuse(self, losses: dict[str, Tensor], image_ids: list[int]) -> None:
        bad = [name for name, value in losses.items() if not value.isfinite()]
        where = f"the losses {', '.join(bad)} are" if bad else "the gradient is"
        raise UserError(
            f"step {self.step_count + 1}: {where} not finite (image ids {image_ids}), no weight was changed; {REMEDY}"
        )

    def state(self) -> dict[str, object]:
        """The fields of a Checkpoint that belong to the learner."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step_count,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same settings."""
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.scaler.load_state_dict(checkpoint.scaler)
        self.step_count = checkpoint.step
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint.ema)
            self.ema.n_averaged.fill_(checkpoint.step)


def follow(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """How averaged weights move: by 1 - `decay` a step, faster at first, so that they soon forget how they began."""

    def move(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        share = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averaged, current, share)

    return move


def seed_step(seed: int, step: int) -> None:
    """Let what a step draws inside the model (dropout) follow from the seed, the step and the process alone."""
    state = np.random.SeedSequence((seed, step, distributed.rank())).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as the processes train it together; alone, the model itself."""
    if distributed.world() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def by_name(losses: Losses) -> dict[str, Tensor]:
    """`loss` is the weighted sum of everything, `dn_loss` the share of denoising in it; the parts are unweighted."""
    return {"loss": losses.total.detach(), "dn_loss": losses.denoising, **losses.parts}


def add(losses: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(losses) == 1:
        return losses[0]
    return {name: torch.stack([part[name] for part in losses]).sum(0) for name in losses[0]}
