"""What the user sees of a run: a header, progress, a line per epoch, the COCO table and where to go next."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from dndetr.config import Config, DataConfig, TrainConfig
from dndetr.console import console, say, shorten
from dndetr.data.augment import fitted
from dndetr.data.coco import Split
from dndetr.fonts import undrawable
from dndetr.models.deformable import by_operator
from dndetr.training import distributed
from dndetr.training.optim import warmup_steps
from dndetr.training.prepare import Data, samples

T = TypeVar("T")

COCO_ROWS = (
    ("ap", "AP", "IoU 0.50:0.95"),
    ("ap50", "AP50", "IoU 0.50"),
    ("ap75", "AP75", "IoU 0.75"),
    ("ap_s", "AP small", "area below 32 x 32"),
    ("ap_m", "AP medium", "area below 96 x 96"),
    ("ap_l", "AP large", "area from 96 x 96"),
    ("ar1", "AR 1", "at most 1 detection an image"),
    ("ar10", "AR 10", "at most 10"),
    ("ar100", "AR 100", "at most 100"),
    ("ar_s", "AR small", ""),
    ("ar_m", "AR medium", ""),
    ("ar_l", "AR large", ""),
)


class Report:
    """Speaks to the console and, if given, to the run's log. Only the main process speaks."""

    def __init__(self, log: Path | None = None):
        self.log = log

    def say(self, text: str) -> None:
        if not distributed.is_main():
            return
        say(text)
        if self.log is not None:
            with contextlib.suppress(OSError), open(self.log, "a") as file:  # a full disk must not hide what is said of it
                file.write(text + "\n")

    def track(self, items: Sequence[T], title: str) -> Iterator[T]:
        """Pass items on beside a bar."""
        with self.progress() as progress:
            bar = progress.add_task(title, total=len(items), status="")
            for item in items:
                yield item
                progress.advance(bar)

    def progress(self) -> Progress:
        return progress_bar(console.is_terminal and distributed.is_main())


def progress_bar(shown: bool, speed_over: float = 30.0) -> Progress:
    """A bar for terminals, whose speed is a mean over so many seconds; nothing where output is piped."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # what the rest leaves of the line: it fits into 80 columns
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=True,
        expand=True,
        disable=not shown,
        speed_estimate_period=speed_over,
    )


class Waiting(Iterable[T]):
    """Passes items on and adds up the time that was spent waiting for them, in seconds."""

    def __init__(self, items: Iterable[T], seconds: float = 0.0):
        self.items, self.seconds = items, seconds

    def __iter__(self) -> Iterator[T]:
        items = iter(self.items)
        while True:
            asked = perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.seconds += perf_counter() - asked
            yield item


def plan(
    config: Config,
    data: Data,
    model: nn.Module,
    weights: str,
    device: torch.device,
    out: Path,
    exceptions: Sequence[str] = (),
) -> str:
    """What is about to happen: the header of a training.

    `weights` says what the detector begins with, `exceptions` what a deterministic training cannot promise.
    """
    train, world, steps = config.train, distributed.world(), len(data.batches)
    most = max(data.train.most_objects, data.validation.split.most_objects)
    queries = model_queries(config)
    rows = [
        ("device", f"{device.type}, {train.precision}" + (f", {world} processes" if world > 1 else "")),
        (
            "batch",
            f"{batch(data.batches.plan.batch_size, world, train.accumulate)}, {steps} step{'s' if steps > 1 else ''} an epoch",
        ),
        ("data", data.dataset.line),
        *(("", remark) for remark in data.remarks),
        *(("", line) for line in specks(data.train, config.data)),
        ("classes", f"{len(data.categories.names)}: {shorten(data.categories.names)}"),
        *(("", line) for line in filter(None, [undrawable(data.categories.names)])),
        ("training images", counts(data.train)),
        ("validation images", counts(data.validation.split)),
        *(("" if i else "pictures", line) for i, line in enumerate(data.pictures.lines())),
        ("objects", f"at most {most} an image, {queries} queries" + (MORE_OBJECTS if most > queries else "")),
        *(("", remark) for remark in uncounted(data.validation.split, config.eval.detections)),
        ("denoising", denoising(config, data.train.most_objects)),
        *warmup_row(train, steps),
        *operator_row(model, device),
        ("parameters", f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"),
        ("weights", weights),
        ("run folder", str(out)),
        *([("deterministic", "as far as can be set, but:")] if exceptions else []),
        *(("", exception) for exception in exceptions),
    ]
    return "\n".join([f"dndetr train: {config.host.name}", *(f"  {name:<19}{value}" for name, value in rows)])


def warmup_row(train: TrainConfig, steps: int) -> list[tuple[str, str]]:
    """The warm-up, where the training is too short for the one of its settings."""
    taken, total = warmup_steps(train, steps), steps * train.epochs
    if taken == train.warmup_steps:
        return []
    return [("warm-up", f"{taken} of {total} steps, not the {train.warmup_steps} of train.warmup_steps: at most a tenth")]


def operator_row(model: nn.Module, device: torch.device) -> list[tuple[str, str]]:
    """How deformable attention is computed, where there is any."""
    if not samples(model):
        return []
    return [("sampling", "native operator" if by_operator(device.type) else "PyTorch's grid_sample")]


def batch(images: int, world: int, accumulate: int) -> str:
    """The effective batch and, where it is not one piece, what it is made of."""
    pieces = [f"{accumulate} accumulated"] * (accumulate > 1) + [f"{world} processes"] * (world > 1)
    made_of = f" = {' x '.join([str(images // (world * accumulate)), *pieces])}" if pieces else ""
    return f"{images} images a step{made_of}"


MORE_OBJECTS = " - WARNING: the objects beyond the queries can never be found; raise host.queries"


def model_queries(config: Config) -> int:
    """N: with patterns every anchor is used several times."""
    return config.host.queries * max(1, getattr(config.host, "patterns", 1))


def specks(split: Split, data: DataConfig) -> list[str]:
    """A line where objects have less than a pixel of what the detector sees, at the size of evaluation."""
    sizes = torch.tensor([fitted(image.height, image.width, data.eval_size, data.max_size) for image in split.images])
    spans = torch.tensor([last - first for first, last in (split.spans[image.id] for image in split.images)])
    sides = split.boxes[:, 2:] * sizes.flip(1).repeat_interleave(spans, dim=0)
    small = int((sides < 1).any(1).sum())
    return [f"{small} of {len(sides)} objects are narrower than a pixel at data.eval_size={data.eval_size}"] if small else []


COUNTED = 100  # detections of a class in an image that COCO counts


def uncounted(split: Split, most: int) -> list[str]:
    """A line where an image has more objects of a class than are counted, so that no detector has an AP of 1."""
    objects = split.most_of_a_class
    if objects <= most:
        return []
    return [
        f"up to {objects} objects of a class in a validation image, of which {most} are counted: AP cannot reach 1; "
        f"eval.detections={objects} counts all"
    ]


def counts(split: Split) -> str:
    with_objects = sum(last > first for first, last in split.spans.values())
    return f"{with_objects} with objects, {len(split.images) - with_objects} without"


def denoising(config: Config, most: int) -> str:
    if config.noise is None:
        return "none"
    groups, bound = config.noise.groups, config.noise.max_objects
    each = groups * config.noise.versions
    row = f"{groups} group{'s' if groups > 1 else ''}, at most {each * max(1, min(most, bound))} denoising queries an image"
    return row + (CROWDED.format(most=most, bound=bound, needed=each * most) if most > bound else "")


CROWDED = (
    " - WARNING: of up to {most} objects in an image only {bound}, drawn anew each epoch, are denoised; "
    "noise.max_queries={needed} denoises all, with more memory"
)


def ending(records: Sequence[dict[str, Any]], out: Path, mended: Sequence[str] = ()) -> str:
    """The COCO table of the best epoch, what of the validation split is `mended`, and the commands to go on with."""
    best = max((record for record in records if record["ap"] is not None), key=lambda r: (r["ap"], r["epoch"]), default=None)
    lines = []
    if best is not None:
        title = f"best epoch, {best['epoch']} of {records[-1]['epoch']}: checkpoints/best.pt"
        lines += [coco_table(title, best, most=best.get("detections", COUNTED)), *(f"  {line}" for line in mended)]
    for path, meaning in (("predictions", "pictures"), ("plots", "curves"), ("metrics.csv", "numbers")):
        lines.append(f"{meaning + ':':<10}{out / path}")
    lines += [f"next:     dndetr eval --ckpt {out}", f"          dndetr predict --ckpt {out} IMAGE --out pictures"]
    return "\n".join(lines)


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """`epoch 3/12  loss 9.41  dn 3.05  AP 0.312  AP50 0.501  IS 3.42  41 s`, without what was not measured.

    Waiting for data is told where it took a twentieth of the time or more: data.workers is too low, or the disk too slow.
    """
    parts = [f"epoch {record['epoch']}/{epochs}", f"loss {record['loss']:.3f}"]
    for key, label, digits in (("dn_loss", "dn", 3), ("ap", "AP", 3), ("ap50", "AP50", 3), ("instability", "IS", 2)):
        if record.get(key) is not None:
            parts.append(f"{label} {record[key]:.{digits}f}")
    if record.get("data_wait", 0) >= 0.05:
        parts.append(f"waited for data {record['data_wait']:.0%}")
    return "  ".join([*parts, f"{record['seconds']:.0f} s"])


def coco_table(title: str, *metrics: dict[str, float | None], most: int = 100) -> str:
    """The 12 numbers of COCO's evaluation, a column for each of `metrics`, counted from 1 where they are several; a dash where
    there was nothing to count. With another number of detections than COCO's 100, eval.detections, the rows say so.
    """
    lines = [title]
    if most != COUNTED:
        lines.append(f"  counted: {most} detections of a class in an image (eval.detections); COCO counts {COUNTED}")
    if len(metrics) > 1:
        lines.append(f"  {'':<11}{'  '.join(f'{number:>5}' for number, _ in enumerate(metrics, start=1))}")
    for key, label, meaning in COCO_ROWS:
        label, meaning = (text.replace(str(COUNTED), str(most)) if key == "ar100" else text for text in (label, meaning))
        values = ["-" if column[key] is None else f"{column[key]:.3f}" for column in metrics]
        lines.append(f"  {label:<11}{'  '.join(f'{value:>5}' for value in values)}  {meaning}".rstrip())
    return "\n".join(lines)


def memory(device: torch.device) -> str:
    """The most memory used so far: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated(device)
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{used / 2**30:.1f} GiB"
