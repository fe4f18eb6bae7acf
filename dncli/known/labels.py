"""`dndetr known-labels`: does it help to know which classes an image has (Table 10)?

A trained detector is fine-tuned with the labels of each image as contents of its matching queries. Measured are: nothing
told; labels told before the fine-tuning; and labels told after each of its epochs. Two things that the paper does not report
tell what being told does from what would have come without it: the same fine-tuning with nothing told, and plain outputs
without the scores of absent classes, which show what the labels are worth to any detector.

The paper gives no settings of the fine-tuning. Here it goes on at a tenth of the training's first rate, without a drop and
without a warm-up, and with the same denoising beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dndetr.ablation.report import as_pipes, as_table
from dndetr.ablation.results import percent
from dndetr.asking import Ask, GivenLabels, Plain
from dndetr.config import Config
from dndetr.console import UserError, console, say
from dndetr.files import replace_text, writable
from dndetr.resolve import Resolved, from_tree, load_preset
from dndetr.settings import dump
from dndetr.tasks import labels_of
from dndetr.training import distributed
from dndetr.training.checkpoint import Checkpoint, load_checkpoint
from dndetr.training.commands import measure
from dndetr.training.loop import train
from dndetr.training.prepare import categories_of
from dndetr.training.run import Run

NEVER = 10_000  # epochs: no drop of the rate
NOTHING, LEFT_OUT, TOLD = "no labels", "no labels, absent classes left out", "known labels"
PAPER = {NOTHING: "43.4", f"{TOLD}, 1 epoch": "43.8", f"{TOLD}, 10 epochs": "46.6"}
COLUMNS = ("what is told", "AP", "AP50", "delta", "paper")


class Line(NamedTuple):
    """One row of the table."""

    name: str
    metrics: dict[str, Any]


def known_labels(
    ckpt: Path, overrides: Sequence[str], *, epochs: int, control: bool, out: Path | None, trust: bool = False
) -> list[Line]:
    """Fine-tune a run's best weights into the run `out`/told, or go on there; measure, show and write the table.

    With `control` they are fine-tuned a second time into `out`/control, with nothing told. Raises UserError before anything
    is trained.
    """
    checkpoint = load_checkpoint(ckpt, trust=trust)
    task = from_tree(checkpoint.config, str(ckpt)).task.name
    if task != "detection":
        raise UserError(f"{ckpt}: was trained for {task}; known-labels begins with a detector (task.name=detection)")
    name = ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.with_suffix("") if ckpt.is_file() else ckpt
    out = out or Path("runs") / f"known-labels-{name.resolve().name}"
    file = settings_file(checkpoint, out)
    told, plain = (
        load_preset(file, [*tuning(checkpoint, epochs), f"task.name={task}", *overrides])
        for task in ("known_labels", "detection")
    )
    found = labels_of(told.config, categories_of(checkpoint))
    asks = {NOTHING: Plain(found), LEFT_OUT: GivenLabels(found=found, told=False), TOLD: GivenLabels(found=found)}
    lines = measured(out / "before.json", ckpt, checkpoint, told.config, asks)
    if control:
        lines += tuned(NOTHING, plain, out / "control", ckpt, trust=trust)
        after = load_checkpoint(out / "control", prefer="last.pt")
        ask = {f"{LEFT_OUT}, {counted(epochs)}": asks[LEFT_OUT]}
        lines += measured(out / f"control-{epochs}.json", out / "control", after, plain.config, ask)
    lines += tuned(TOLD, told, out / "told", ckpt, trust=trust)
    if distributed.launched_first():
        show(lines, ckpt, out)
    return lines


def tuned(name: str, resolved: Resolved, folder: Path, ckpt: Path, *, trust: bool) -> list[Line]:
    """The AP after each epoch of a fine-tuning, which is done as far as it is not done yet."""
    if (folder / "config.yaml").is_file():
        train(resolved, None, resume=folder)
    else:
        train(resolved, folder, init_from=ckpt, trust=trust)
    return [Line(f"{name}, {counted(record['epoch'])}", record) for record in Run(folder).records()]


def counted(epochs: int) -> str:
    return f"{epochs} epoch{'s' if epochs > 1 else ''}"


def measured(file: Path, source: Path, checkpoint: Checkpoint, config: Config, asks: Mapping[str, Ask]) -> list[Line]:
    """A checkpoint asked in several ways, once: the numbers are kept in `file`. Of several processes one knows them."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    if not kept:
        kept = {name: evaluation.metrics for name, evaluation in measure(checkpoint, config, source, asks).items()}
        if kept:
            with writable(file):
                replace_text(file, json.dumps(kept, indent=2) + "\n")
    return [Line(name, metrics) for name, metrics in kept.items()]


def settings_file(checkpoint: Checkpoint, out: Path) -> Path:
    """The settings of the detector, as a preset."""
    file = out / "detector.yaml"
    with writable(out):
        out.mkdir(parents=True, exist_ok=True)
        replace_text(file, dump(checkpoint.config))
    return file


def tuning(checkpoint: Checkpoint, epochs: int) -> list[str]:
    """The settings of the fine-tuning, as overrides."""
    rates = (f"train.{name}={checkpoint.config['train'][name] / 10:g}" for name in ("lr", "backbone_lr"))
    fixed = (f"train.epochs={epochs}", f"train.drop_epoch={NEVER}", "train.warmup_steps=0")
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
            PAPER.get(line.name, ""),
        )
        for line in lines
    ]
    console.print(as_table(COLUMNS, cells))
    page = ["# Known label detection (Table 10)", f"Fine-tuned from `{ckpt}`; AP in percent.", as_pipes(COLUMNS, cells)]
    replace_text(out / "known-labels.md", "\n\n".join(page) + "\n")
    say(f"written to {out}: known-labels.md, and the fine-tuned run in {out / 'told'}")
