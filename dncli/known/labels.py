"""`dndetr known-labels`: does it help to know which classes an image has (Table 10)?

A trained detector is fine-tuned with the labels of each image as contents of its matching queries. Measured are: nothing
told; nothing told, but scores of absent classes left out, which the paper does not report and which shows what the labels
are worth to any detector; labels told before the fine-tuning; and labels told after each of its epochs.

The paper gives no settings of the fine-tuning. Here it goes on at a tenth of the rate, the one that the training ended
with, without a drop and without a warm-up, and with the same denoising beside it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dncli.ablation.report import as_pipes, as_table, say
from dncli.ablation.results import percent
from dncli.asking import GivenLabels, Plain
from dncli.config import Config
from dncli.console import UserError, console
from dncli.files import replace_text
from dncli.presets import from_tree, load_preset
from dncli.settings import dump
from dncli.tasks import labels_of
from dncli.training.checkpoint import Checkpoint, load_checkpoint
from dncli.training.commands import measure
from dncli.training.loop import train
from dncli.training.prepare import categories_of
from dncli.training.run import Run

NOTHING, ABSENT, BEFORE = "no labels", "no labels, absent classes left out", "known labels, before fine-tuning"
NEVER = 10_000  # epochs: no drop of the rate
PAPER = {NOTHING: "43.4", 1: "43.8", 10: "46.6"}  # by epochs of fine-tuning
COLUMNS = ("what is told", "AP", "AP50", "delta", "paper")


class Line(NamedTuple):
    """One row of the table."""

    name: str
    metrics: dict[str, Any]
    paper: str = ""


def known_labels(ckpt: Path, overrides: Sequence[str], *, epochs: int, out: Path | None, trust: bool = False) -> list[Line]:
    """Fine-tune a run's best weights into the run `out`, or go on there; measure, show and write the table.

    Raises UserError before anything is trained.
    """
    checkpoint = load_checkpoint(ckpt, trust=trust)
    task = from_tree(checkpoint.config, str(ckpt)).task.name
    if task != "detection":
        raise UserError(f"{ckpt}: was trained for {task}; known-labels begins with a detector (task.name=detection)")
    name = ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.with_suffix("") if ckpt.is_file() else ckpt
    out = out or Path("runs") / f"known-labels-{name.resolve().name}"
    resolved = load_preset(settings_file(checkpoint, out), [*tuning(checkpoint, epochs), *overrides])
    lines = measured_before(ckpt, checkpoint, resolved.config, out)
    run = Run(out / "run")
    if (run.path / "config.yaml").is_file():
        train(resolved, None, resume=run.path)
    else:
        train(resolved, run.path, init_from=ckpt, trust=trust)
    if not lines:  # not the main process
        return []
    for record in run.records():
        done = record["epoch"]
        lines.append(Line(f"known labels, {done} epoch{'s' if done > 1 else ''}", record, PAPER.get(done, "")))
    show(lines, ckpt, out)
    return lines


def measured_before(ckpt: Path, checkpoint: Checkpoint, config: Config, out: Path) -> list[Line]:
    """What the detector reaches before fine-tuning, measured once and kept in `out`; of several processes one knows it."""
    file = out / "before.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if not kept:
        found = labels_of(config, categories_of(checkpoint))
        asks = {NOTHING: Plain(found), ABSENT: GivenLabels(found=found, told=False), BEFORE: GivenLabels(found=found)}
        evaluations = measure(checkpoint, config, ckpt, asks)
        kept = {name: evaluation.metrics for name, evaluation in evaluations.items()}
        if kept:
            replace_text(file, json.dumps(kept, indent=2) + "\n")
    return [Line(name, metrics, PAPER.get(name, "")) for name, metrics in kept.items()]


def settings_file(checkpoint: Checkpoint, out: Path) -> Path:
    """The settings of the detector, as a preset."""
    file = out / "detector.yaml"
    out.mkdir(parents=True, exist_ok=True)
    replace_text(file, dump(checkpoint.config))
    return file


def tuning(checkpoint: Checkpoint, epochs: int) -> list[str]:
    """The settings of the fine-tuning, as overrides."""
    rates = (f"train.{name}={checkpoint.config['train'][name] / 10:g}" for name in ("lr", "backbone_lr"))
    fixed = ("task.name=known_labels", f"train.epochs={epochs}", f"train.drop_epoch={NEVER}", "train.warmup_steps=0")
    return [*fixed, "eval.every=1", "paper=null", *rates]


def show(lines: Sequence[Line], ckpt: Path, out: Path) -> None:
    """The table on the console, and in `out` as known-labels.md."""
    first = percent(lines[0].metrics["ap"])
    cells = [
        (
            line.name,
            f"{percent(line.metrics['ap']):.1f}",
            f"{percent(line.metrics['ap50']):.1f}",
            f"{percent(line.metrics['ap']) - first:+.1f}" if line is not lines[0] else "",
            line.paper,
        )
        for line in lines
    ]
    console.print(as_table(COLUMNS, cells))
    page = ["# Known label detection (Table 10)", f"Fine-tuned from `{ckpt}`; AP in percent.", as_pipes(COLUMNS, cells)]
    replace_text(out / "known-labels.md", "\n\n".join(page) + "\n")
    say(f"written to {out}: known-labels.md, and the fine-tuned run in {out / 'run'}")
