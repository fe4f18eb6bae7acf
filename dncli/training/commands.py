"""`dndetr eval`: a checkpoint on validation images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dncli.config import Config
from dncli.console import UserError
from dncli.files import replace_text
from dncli.presets import leaves, validated
from dncli.settings import Place, Setting, is_among, merge, parse_override
from dncli.training import distributed
from dncli.training.checkpoint import Checkpoint, load_checkpoint
from dncli.training.evaluate import counter_class, evaluate
from dncli.training.precision import check_precision
from dncli.training.prepare import categories_of, load_detector, load_validation
from dncli.training.report import Report, coco_table
from models.matcher import Matcher

OPEN = ("data", "eval", "train.device", "op")  # blocks and settings of a checkpoint that an evaluation may change


def evaluate_command(
    ckpt: str | Path, overrides: Sequence[str] = (), json_path: str | Path | None = None, *, trust: bool = False
) -> dict[str, float | None]:
    """Print COCO's 12 numbers of a run (its best epoch) or a checkpoint file, and write them to `json_path`.

    Settings and categories are those of the checkpoint; `overrides` may change data.*, eval.*, train.device and op, for
    instance data.root; `trust` opens a checkpoint that can run code. Returns the numbers (nothing in processes but the main
    one). Raises UserError.
    """
    checkpoint = load_checkpoint(ckpt, trust=trust)
    config = settings_of(checkpoint, overrides, ckpt)
    counter_class(config.eval.counter)  # must be installed
    with distributed.processes(config.train.device, config.train.timeout) as device:
        check_precision(config, device)
        model = distributed.together(lambda: load_detector(checkpoint, config, ckpt, device))
        validation = distributed.together(lambda: load_validation(config, categories_of(checkpoint)))
        report = Report()
        evaluation = evaluate(
            model,
            report.track(validation.batches, "evaluation"),
            validation.truth,
            checkpoint.category_ids,
            Matcher(config.match),
            top=config.eval.top,
            counter=config.eval.counter,
            precision=config.eval.precision,
            device=device,
        )
    if evaluation is None:
        return {}
    images = len(validation.split.images)
    report.say(coco_table(evaluation.metrics, f"{ckpt}, epoch {checkpoint.epoch}, {images} images of {config.data.root}"))
    if json_path is not None:
        about = {"checkpoint": str(ckpt), "epoch": checkpoint.epoch, "data": config.data.root, "images": images}
        write_json(Path(json_path), {**about, **evaluation.metrics, "anchor_distance": evaluation.anchor_distance})
    return evaluation.metrics


def settings_of(checkpoint: Checkpoint, overrides: Sequence[str], source: str | Path) -> Config:
    """The settings of a checkpoint with overrides on top, on whatever device there is. All mistakes at once."""
    origin = Place(1, 0, str(source))
    tree = leaves({**checkpoint.config, "train": {**checkpoint.config["train"], "device": "auto"}})
    settings, mistakes = {key: Setting(value, origin) for key, value in tree.items()}, []
    for i, text in enumerate(overrides):
        given, wrong = parse_override(text, Place(2, i, f"override {text!r}"))
        settings, mistakes = merge(settings, given), mistakes + wrong
    config = validated(settings, mistakes, origin)
    given = [key for key, setting in settings.items() if setting.place.layer == 2]
    fixed = [key for key in given if not is_among(key, OPEN)]
    if fixed:
        raise UserError(
            f"{', '.join(fixed)}: fixed by the checkpoint; an evaluation may change data.*, eval.*, train.device and op only"
        )
    return config


def write_json(path: Path, content: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
