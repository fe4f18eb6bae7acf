"""Batches: which process and which part of a step sees which image, the same for any number of workers."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, Dataset

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data.augment import fixed_view, image_generator, training_view
from dndetr.data.coco import Split
from dndetr.data.images import read_image, reading_of
from dndetr.models.structures import Images, Target

Key = tuple[int, int]  # epoch and index of an image
Sample = tuple[torch.Tensor, Target]  # (3, h, w) and its objects
Part = tuple[Images, list[Target]]


class DetectionDataset(Dataset):
    """The images of a split, ready for the detector. An item is asked for by (epoch, index): a view of its own each epoch."""

    def __init__(self, split: Split, config: DataConfig, seed: int, train: bool):
        self.split, self.config, self.seed, self.train = split, config, seed, train

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        record = self.split.images[index]
        picture = read_image(record.path, (record.width, record.height), reading_of(self.config))
        objects = self.split.objects(record.id)
        if self.train:
            rng = image_generator(self.seed, epoch, record.id, "view")
            view, boxes, labels = training_view(picture, objects.boxes, objects.labels, self.config, rng)
        else:
            view, boxes, labels = fixed_view(picture, self.config), objects.boxes, objects.labels
        return view, Target(labels, boxes, record.id, (record.height, record.width))


def collate(samples: Sequence[Sample]) -> Part:
    """Images of different sizes on one canvas (B, 3, H, W), in its upper left corner; without padding where they are equal."""
    views, targets = [view for view, _ in samples], [target for _, target in samples]
    if len({view.shape for view in views}) == 1:
        return Images(torch.stack(views)), targets
    height, width = (max(view.shape[dim] for view in views) for dim in (1, 2))
    canvas = torch.zeros(len(views), 3, height, width)
    padding = torch.ones(len(views), height, width, dtype=torch.bool)
    for i, view in enumerate(views):
        canvas[i, :, : view.shape[1], : view.shape[2]] = view
        padding[i, : view.shape[1], : view.shape[2]] = False
    return Images(canvas, padding), targets


class TrainLoader:
    """The steps of an epoch, each a list of the parts of its batch that this process sees.

    Set the epoch before iterating, and how many of its steps are done already. Workers are started once and kept.
    """

    def __init__(self, plan: TrainPlan, dataset: DetectionDataset, workers: int):
        self.plan, self.batches = plan, Batches(dataset, plan, workers)

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        self.plan.epoch, self.plan.done = epoch, done

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[list[Part]]:
        parts = iter(self.batches)
        for _ in range(self.plan.done, self.plan.steps):
            yield [next(parts) for _ in range(self.plan.accumulate)]


class TrainPlan:
    """Which images are in which part: each epoch's order is cut into batches, these into processes, these into parts."""

    def __init__(self, images: int, batch_size: int, accumulate: int, rank: int, world: int, seed: int):
        self.images, self.batch_size, self.accumulate = images, min(batch_size, images), accumulate
        self.rank, self.world, self.seed, self.epoch, self.done = rank, world, seed, 1, 0
        self.steps = images // self.batch_size  # what is left over waits for another epoch

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        order = torch.randperm(self.images, generator=image_generator(self.seed, self.epoch, -1, "order"))
        for batch in order.split(self.batch_size)[self.done : self.steps]:
            share = batch.tensor_split(self.world)[self.rank]
            for part in share.tensor_split(self.accumulate):
                yield [(self.epoch, index) for index in part.tolist()]


class EvalPlan:
    """Each image once over the processes."""

    def __init__(self, images: int, batch_size: int, rank: int, world: int):
        self.indices, self.batch_size = range(rank, images, world), batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


def train_loader(
    dataset: DetectionDataset, *, batch_size: int, accumulate: int = 1, rank: int = 0, world: int = 1, workers: int, seed: int
) -> TrainLoader:
    """Batches of `batch_size` images over all processes and parts; the incomplete last one is left out.

    A dataset smaller than a batch is one batch. Raises UserError where a process or a part would have no image, or another
    number of them than its neighbours.
    """
    images, parts = len(dataset), world * accumulate
    shares = f"{world} process{'es' if world > 1 else ''} x {accumulate} accumulated"
    if batch_size % parts:
        raise UserError(
            f"train.batch_size {batch_size} cannot be split evenly over {shares} = {parts} parts; "
            f"use a multiple of {parts}, for instance {-(-batch_size // parts) * parts}"
        )
    if images < parts:
        raise UserError(f"{images} training images are too few for {shares} = {parts} parts of a batch; use fewer")
    plan = TrainPlan(images, batch_size, accumulate, rank, world, seed)
    return TrainLoader(plan, dataset, workers)


def eval_loader(dataset: DetectionDataset, *, batch_size: int, rank: int = 0, world: int = 1, workers: int) -> Batches:
    """Batches in which each image appears once over all processes; every process sees every `world`-th."""
    return Batches(dataset, EvalPlan(len(dataset), batch_size, rank, world), workers)


class Batches:
    """Collated batches as a plan says, read by workers that stay alive. A UserError in a worker arrives as it was raised."""

    def __init__(self, dataset: DetectionDataset, plan: TrainPlan | EvalPlan, workers: int):
        self.loader = DataLoader(
            Guarded(dataset),
            batch_sampler=plan,
            collate_fn=collate_guarded,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),  # so that copies to a GPU run beside its work
            worker_init_fn=leave_signals,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Part]:
        # Workers start here. A signal that reached one before it is told to leave signals would end it.
        before, others = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT), active_children()
        try:
            batches = iter(self.loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        WORKERS.update({worker: os.getpid() for worker in active_children() if worker not in others})
        for batch in batches:
            if isinstance(batch, Refusal):
                raise UserError(*batch.lines)
            yield unpacked(batch)


def leave_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM, which reach a whole group of processes, are answered by the main one: the step that it finishes
    needs its workers. They end with it.
    """
    for number in LEFT:
        signal.signal(number, signal.SIG_IGN)


LEFT = (signal.SIGINT, signal.SIGTERM)
WORKERS: WeakKeyDictionary[BaseProcess, int] = WeakKeyDictionary()  # and the process that started each


@atexit.register
def end_workers() -> None:
    """End the workers that are left when Python exits. It would do so by SIGTERM, which they leave, and wait for ever."""
    mine = [worker for worker, starter in WORKERS.items() if starter == os.getpid()]
    if mine:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes the end of a worker for a failure
    for worker in mine:
        worker.kill()


@dataclass(frozen=True)
class Refusal:
    """The lines of a UserError on its way from a worker; as an exception it would arrive wrapped in a traceback."""

    lines: tuple[str, ...]


class Guarded(Dataset):
    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample | Refusal:
        try:
            return self.dataset[key]
        except UserError as error:
            return Refusal(error.lines)


def collate_guarded(samples: Sequence[Sample | Refusal]) -> Packed | Refusal:
    lines = tuple(line for sample in samples if isinstance(sample, Refusal) for line in sample.lines)
    return Refusal(lines) if lines else packed(collate(samples))


class Packed(NamedTuple):
    """A part in four tensors: each tensor that a worker sends costs a file descriptor and time."""

    pixels: torch.Tensor
    padding: torch.Tensor | None
    labels: torch.Tensor  # of all images, one after the other
    boxes: torch.Tensor
    images: list[tuple[int, int, tuple[int, int]]]  # number of objects, id, height and width


def packed(part: Part) -> Packed:
    images, targets = part
    labels, boxes = torch.cat([t.labels for t in targets]), torch.cat([t.boxes for t in targets])
    return Packed(images.pixels, images.padding, labels, boxes, [(len(t.labels), t.image_id, t.size) for t in targets])


def unpacked(batch: Packed) -> Part:
    counts = [count for count, _, _ in batch.images]
    objects = zip(batch.labels.split(counts), batch.boxes.split(counts), batch.images, strict=True)
    targets = [Target(labels, boxes, i, tuple(size)) for labels, boxes, (_, i, size) in objects]  # older PyTorch pins lists
    return Images(batch.pixels, batch.padding), targets
