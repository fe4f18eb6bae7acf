"""A training from its settings: everything is checked and opened here, for a new run or one to go on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from dndetr.config import Config
from dndetr.files import replace_text
from dndetr.resolve import Resolved, to_tree
from dndetr.training import distributed
from dndetr.training.checkpoint import Checkpoint, categories_of, checkpoint_bytes, load_checkpoint
from dndetr.training.determinism import be_deterministic
from dndetr.training.epochs import Training, new_checkpoint
from dndetr.training.evaluate import counter_class
from dndetr.training.incidents import keeper
from dndetr.training.learner import Learner
from dndetr.training.precision import check_precision
from dndetr.training.prepare import Data, anchored, begin, build_model, load_data, settled
from dndetr.training.report import Report, plan
from dndetr.training.resume import check_allowed, check_data, check_settings, position, restarted, run_folder, with_range_of
from dndetr.training.run import CHECKPOINTS_AT_ONCE, Run, check_free, create_run, reopen_run


def train(
    resolved: Resolved,
    out: str | Path | None,
    *,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    trust: bool = False,
    deterministic: bool = False,
) -> Path:
    """Train as `resolved` says into the run folder `out`, evaluating on the way; returns that folder.

    `resume` goes on with a run in its own folder after its last checkpoint, exactly as if it had never stopped (on a CPU, to
    the last bit); so does a restart by torchrun. Settings that differ are refused, but for those in `allow_change`.
    `init_from` takes only the weights of a run or checkpoint; `trust` opens checkpoints that can run code;
    `deterministic` sets what makes a run give the same bits again, and the header says what cannot be set. Processes that
    torchrun started share each batch. Raises UserError for settings, data, weights or folders that do not work, before
    anything is overwritten, and Stopped when SIGTERM or Ctrl-C ended the run and it is saved.
    """
    config = anchored(resolved.config)
    check_allowed(allow_change)
    with distributed.processes(config.train.device, config.train.timeout) as device:
        exceptions = be_deterministic(device) if deterministic else []
        training = opened(config, device, out, resume, init_from, overwrite, allow_change, trust, exceptions)
        training.go()
    return training.run.path


def opened(
    config: Config,
    device: torch.device,
    out: str | Path | None,
    resume: str | Path | None,
    init_from: str | Path | None,
    overwrite: bool,
    allow_change: Sequence[str],
    trust: bool,
    exceptions: list[str],
) -> Training:
    """Everything that a training needs, checked before a file is changed."""
    if resume is None and distributed.gather(restarted(Path(out)))[0]:
        resume = out
    where = Path(out) if resume is None else run_folder(resume)

    def asked() -> Checkpoint | None:
        """The checkpoint to go on with, None for a new run."""
        check_precision(config, device)
        counter_class(config.eval.counter)  # must be installed
        if resume is None:
            check_free(where, overwrite=overwrite)
            return None
        checkpoint = load_checkpoint(resume, prefer="last.pt", trust=trust)
        check_settings(where, checkpoint, with_range_of(checkpoint, config), allow_change)
        return checkpoint

    checkpoint = distributed.together(asked)
    config = config if checkpoint is None else with_range_of(checkpoint, config)
    data = load_data(config, None if checkpoint is None else categories_of(checkpoint), settle=checkpoint is None)
    config = settled(config, data.pictures)
    if checkpoint is not None:
        distributed.together(lambda: check_data(where, checkpoint, data, allow_change))
        checkpoint = position(checkpoint, len(data.batches))
    torch.manual_seed(config.train.seed)
    model = distributed.together(lambda: build_model(config, data.categories, device, checkpoint))
    if checkpoint is None:
        weights = begin(model, config, data.categories, init_from, trust=trust)
    else:
        weights = f"of this run, after epoch {checkpoint.epoch} and step {checkpoint.step}"
    learner = Learner(config, model, device, len(data.batches))
    if checkpoint is not None:
        distributed.together(lambda: learner.restore(checkpoint, resume))
    run = open_run(config, data, learner, checkpoint, where, overwrite)
    learner.tell = keeper(config, data, run)
    report = Report(run.log)
    report.say(plan(config, data, model, weights, device, run.path, exceptions))
    return Training(config, data, learner, run, report, checkpoint)


def open_run(config: Config, data: Data, learner: Learner, checkpoint: Checkpoint | None, where: Path, overwrite: bool) -> Run:
    """The new run folder, or that of the run to go on with."""
    tree, room = to_tree(config), CHECKPOINTS_AT_ONCE * checkpoint_bytes(learner.model, ema=learner.ema is not None)
    if checkpoint is None:
        first = new_checkpoint(config, data, learner)
        distributed.on_main(lambda: create_run(where, tree, first, room=room, overwrite=overwrite))
    else:
        distributed.on_main(lambda: reopen_run(where, tree, checkpoint, room=room))
    run = Run(where)
    if config.data.holdout:
        distributed.on_main(lambda: replace_text(run.holdout, json.dumps(held_out(data)) + "\n"))
    return run


def held_out(data: Data) -> dict[str, list[int]]:
    """The ids of the images that data.holdout left for training and took for validation."""
    return {split.name: [image.id for image in split.images] for split in (data.train, data.validation.split)}
