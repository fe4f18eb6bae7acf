"""`dndetr eval`: a checkpoint on validation images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dndetr.asking import SAME, Ask, GivenLabels, Plain, Progressive, Suppressed, build_ask
from dndetr.config import Config
from dndetr.console import UserError, in_one_line
from dndetr.data.coco import Categories, load_split
from dndetr.data.layouts import find_dataset
from dndetr.files import replace_text, writable
from dndetr.labels.embeddings import for_categories
from dndetr.models.matcher import Matcher
from dndetr.resolve import from_tree, leaves, validated
from dndetr.settings import Place, Setting, Settings, is_among, merge, parse_override
from dndetr.tasks import labels_of
from dndetr.training import distributed
from dndetr.training.checkpoint import Checkpoint, load_checkpoint
from dndetr.training.evaluate import Evaluation, counter_class, evaluate
from dndetr.training.precision import check_precision
from dndetr.training.prepare import categories_of, load_detector, load_validation
from dndetr.training.report import Report, coco_table, uncounted

OPEN = ("data", "eval", "task.classes", "train.device", "op")  # what an evaluation may change of a checkpoint's settings


@dataclass(frozen=True)
class Telling:
    """What an evaluation tells the detector beside the images (Sec. 5.7)."""

    labels_from: str | Path | None = None  # a file of `dndetr labels classify`: the classes that each image has
    likely: float = 0.5  # from this probability in that file on
    rounds: int = 0  # of progressive inference
    sure: float = 0.1  # from this score on a detection is told in the next round

    def asks(self, checkpoint: Checkpoint, config: Config) -> dict[str, Ask]:
        """The ways to ask by name: with nothing told; so that what is told only strikes out something, absent classes or
        second detections of an object; and, last, as this says. Empty where nothing is told. Raises UserError.
        """
        if self.labels_from is not None and self.rounds:
            raise UserError("--labels-from and --progressive are two ways to ask: give one of them")
        categories = categories_of(checkpoint)
        plain = {"nothing told": Plain(labels_of(config, categories))}
        if self.labels_from is not None:
            given = GivenLabels(read_labels(self.labels_from, categories, self.likely), labels_of(config, categories))
            name = f"labels of {self.labels_from}"
            return plain | {f"classes not among the {name} left out": replace(given, told=False), name: given}
        if self.rounds:
            check_progressive(checkpoint)
            found = labels_of(config, categories)
            return plain | {
                f"non-maximum suppression at IoU {SAME:g}": Suppressed(found),
                f"{self.rounds} rounds from a score of {self.sure:g}": Progressive(
                    self.rounds, self.sure, len(categories), found
                ),
            }
        return {}


NOTHING = Telling()


def evaluate_command(
    ckpt: str | Path,
    overrides: Sequence[str] = (),
    json_path: str | Path | None = None,
    *,
    telling: Telling = NOTHING,
    embeddings: str | Path | None = None,
    trust: bool = False,
) -> dict[str, float | None]:
    """Print COCO's 12 numbers of a run (its best epoch) or a checkpoint file, and write them to `json_path`.

    Settings and categories are those of the checkpoint; `overrides` may change data.*, eval.*, task.classes, train.device and
    op, for instance data.root. What `telling` tells is measured beside an evaluation that tells nothing. With a file of
    `embeddings` the categories are those of the data, of which it has vectors, seen in training or not (zero-shot,
    Sec. 5.7.2). `trust` opens a checkpoint that can run code. Returns the numbers (nothing in processes but the main one).
    Raises UserError.
    """
    checkpoint = load_checkpoint(ckpt, trust=trust)
    config = settings_of(checkpoint, overrides, ckpt)
    if embeddings is not None:
        classes = load_split(find_dataset(config.data, config.train.seed), "val").categories
        checkpoint = for_categories(checkpoint, classes, embeddings)
    categories = categories_of(checkpoint)
    asks = telling.asks(checkpoint, config)
    found = measure(checkpoint, config, ckpt, asks or {"": build_ask(config, categories)})
    if not found:
        return {}
    report, title = Report(), f"{ckpt}, epoch {checkpoint.epoch}, {images_of(found)} images of {config.data.named}"
    ways = [f"\n  {number}: {name}" for number, name in enumerate(asks, start=1)]
    most, columns = config.eval.detections, [evaluation.metrics for evaluation in found.values()]
    report.say(coco_table(title + "".join(ways), *columns, most=most))
    *_, last = found.values()
    content = {"checkpoint": str(ckpt), "epoch": checkpoint.epoch, "data": config.data.named, "images": images_of(found)}
    content |= {"detections": most}
    content |= {**last.metrics, "anchor_distance": last.anchor_distance}
    if asks:
        plain, *told = asks
        without = found[plain].metrics["ap"]
        content |= {"told": told[-1], "ap_of": {name: evaluation.metrics["ap"] for name, evaluation in found.items()}}
        for name in told if without is not None else ():
            ap = found[name].metrics["ap"]
            report.say(f"AP {without:.3f} -> {ap:.3f}, {ap - without:+.3f} with {name}")
    if json_path is not None:
        write_json(Path(json_path), content)
    return last.metrics


def measure(checkpoint: Checkpoint, config: Config, source: str | Path, asks: Mapping[str, Ask]) -> dict[str, Evaluation]:
    """Evaluate a checkpoint, which came from `source`, in several ways. Processes but the main one get nothing."""
    counter_class(config.eval.counter)  # must be installed
    found: dict[str, Evaluation | None] = {}
    with distributed.processes(config.train.device, config.train.timeout) as device:
        check_precision(config, device)
        model = distributed.together(lambda: load_detector(checkpoint, config, source, device))
        validation = distributed.together(lambda: load_validation(config, categories_of(checkpoint)))
        split = validation.split
        for line in (f"validation images: {split.annotation_file}", *split.mended, *uncounted(split, config.eval.detections)):
            Report().say(line)
        for name, ask in asks.items():
            found[name] = evaluate(
                model,
                Report().track(validation.batches, f"evaluation{name and f', {name}'}"),
                validation.truth,
                checkpoint.category_ids,
                Matcher(config.match),
                ask=ask,
                top=config.eval.top,
                counter=config.eval.counter,
                most=config.eval.detections,
                precision=config.eval.precision,
                device=device,
            )
    return {name: evaluation for name, evaluation in found.items() if evaluation is not None}


def images_of(found: Mapping[str, Evaluation]) -> int:
    return len(next(iter(found.values())).matches.image_id)


def check_progressive(checkpoint: Checkpoint) -> None:
    """Raise UserError for a detector that did not learn to find the rest where objects of any class are known."""
    task = from_tree(checkpoint.config).task
    if task.name != "known_objects" or task.classes:
        raise UserError(
            "--progressive needs a detector that learned to use known objects of any class: "
            "dndetr train task.name=known_objects noise.groups=1"
        )


def read_labels(path: str | Path, categories: Categories, likely: float) -> dict[int, list[int]]:
    """The classes of each image that a file of `dndetr labels classify` finds at least `likely`, by image id.

    Raises UserError for other files, and for classes that are not the detector's.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        names, images = content["classes"], {int(i): [float(p) for p in row] for i, row in content["images"].items()}
        if not all(len(row) == len(names) for row in images.values()):
            raise ValueError("an image has another number of probabilities than there are classes")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a file of image labels (dndetr labels classify makes one): {in_one_line(error)}"
        ) from error
    if len(set(names)) < len(names):
        raise UserError(f"{path}: has several classes of one name; make it anew with dndetr labels classify")
    strange = [name for name in names if name not in categories.names]
    if strange:
        raise UserError(f"{path}: has classes that the detector does not know: {', '.join(map(str, strange))}")
    index = [categories.names.index(name) for name in names]
    return {i: [index[c] for c, p in enumerate(row) if p >= likely] for i, row in images.items()}


def settings_of(checkpoint: Checkpoint, overrides: Sequence[str], source: str | Path) -> Config:
    """The settings of a checkpoint with overrides on top, on whatever device there is. All mistakes at once."""
    origin = Place(1, 0, str(source))
    tree = leaves({**checkpoint.config, "train": {**checkpoint.config["train"], "device": "auto"}})
    settings, mistakes = {key: Setting(value, origin) for key, value in tree.items()}, []
    for i, text in enumerate(overrides):
        given, wrong = parse_override(text, Place(2, i, f"override {text!r}"))
        settings, mistakes = merge(settings, given), mistakes + wrong
    config = validated(of_one_dataset(settings), mistakes, origin)
    given = [key for key, setting in settings.items() if setting.place.layer == 2]
    fixed = [key for key in given if not is_among(key, OPEN)]
    if fixed:
        raise UserError(
            f"{', '.join(fixed)}: fixed by the checkpoint; an evaluation may change data.*, eval.*, task.classes, "
            "train.device and op only"
        )
    return config


def of_one_dataset(settings: Settings) -> Settings:
    """The settings without those of the run's own dataset where overrides name another: by its root, or file by file."""
    root, files = {"data.root"}, {"data.train", "data.val", "data.images"}
    given = {key for key, setting in settings.items() if setting.place.layer == 2}
    dropped = files if given & root and not given & files else root if given & files and not given & root else set()
    return {key: setting for key, setting in settings.items() if key not in dropped or key in given}


def write_json(path: Path, content: dict[str, object]) -> None:
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(content, indent=2) + "\n")
