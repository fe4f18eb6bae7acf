"""Training samples as the detector sees them: augmented, and beside each the noised queries that its decoder is told."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from PIL import ExifTags, Image, ImageDraw, ImageFont
from torch import Tensor

from dndetr.config import Config
from dndetr.console import brief
from dndetr.data.augment import picture_of
from dndetr.data.coco import Categories, ImageRecord, Split, load_split
from dndetr.data.images import UPRIGHT, in_a_line
from dndetr.data.layouts import find_dataset
from dndetr.data.loader import DetectionDataset, Key, TrainPlan
from dndetr.data.store import Place
from dndetr.draw import HEADING, LARGEST, SMALLEST, Mark, draw_marks, side_by_side
from dndetr.files import new_folder
from dndetr.models.boxes import cxcywh_to_xyxy
from dndetr.models.criterion import Wanted
from dndetr.models.denoising.queries import Known
from dndetr.predict import free_name
from dndetr.tasks import Task, build_task
from dndetr.training.report import Report

GROUPS = 3  # of the noise that are drawn of an image; the contact sheet has the first one
SEARCHED = 300  # images, among which one with an EXIF rotation is looked for
WHITE, BLACK, UNKNOWN, NEGATIVE = (255, 255, 255), (0, 0, 0), (255, 0, 200), (128, 128, 128)
LETTER = 7.5  # pixels of the caption's font, about
GAP = 16  # pixels between the images of the contact sheet


class Seen(NamedTuple):
    """One image of a training: what is shown, told and wanted."""

    record: ImageRecord
    picture: Image.Image
    known: Known | None
    wanted: Wanted
    turned: bool  # by its EXIF orientation


def look(config: Config, out: Path, count: int = 16) -> str:
    """Draw the first `count` images of the first epoch, in the order and the views of a training with these settings.

    `out`, a new or empty folder, receives a picture of each and all of them in look.jpg; returns a sentence on that. The last
    image gives way to one with an EXIF rotation where none of the others has one. Raises UserError.
    """
    split = load_split(find_dataset(config.data, config.train.seed), "train")
    images = DetectionDataset(split, config.data, config.train.seed, train=True)
    task, cells = build_task(config, split.categories), []
    with new_folder(out, "choose another place with --out") as draft:
        sheet = draft / "look.jpg"
        sheet.touch()  # so that no image takes the name
        for key in Report().track(chosen(split, config.train.seed, count), "drawing"):
            seen = see(images, task, key)
            whole = side_by_side(panels(seen, split.categories, GROUPS, LARGEST / max(seen.picture.size)))
            file = free_name(draft, stem_of(seen.record))
            captioned(whole, caption(seen)).save(file, quality=92)
            cells.append(side_by_side(panels(seen, split.categories, 1, SMALLEST / min(seen.picture.size))))
        captioned(grid(cells), caption_of_all(len(cells), config.noise is not None)).save(sheet, quality=92)
    return f"{out}: {len(cells)} of {len(split.images)} training images as epoch 1 sees them; all at once: {out / 'look.jpg'}"


def chosen(split: Split, seed: int, count: int) -> list[Key]:
    """The first images of epoch 1."""
    order = next(iter(TrainPlan(len(split.images), len(split.images), 1, 0, 1, seed)))
    keys = order[:count]
    if not any(is_turned(split.images[index].path) for _, index in keys):
        turned = next((key for key in order[count:SEARCHED] if is_turned(split.images[key[1]].path)), None)
        keys = keys[:-1] + [turned] if turned else keys
    return keys


def is_turned(place: Place) -> bool:
    """Whether a viewer turns the picture."""
    try:
        with place.open("rb") as stream, Image.open(stream) as file:
            return file.getexif().get(ExifTags.Base.Orientation, 1) in UPRIGHT
    except Exception:  # decoders raise whatever they like; what is wrong is said where the image is read
        return False


def see(images: DetectionDataset, task: Task, key: Key) -> Seen:
    epoch, index = key
    view, target = images[key]
    record = images.split.images[index]
    return Seen(record, picture_of(view), *task.at(epoch)([target]), is_turned(record.path))


def panels(seen: Seen, categories: Categories, groups: int, scale: float) -> list[tuple[str, Image.Image]]:
    """What is to be found, and up to so many groups of what is told, each with its heading; shrunk by a `scale` below 1."""
    size = [max(1, round(length * min(scale, 1))) for length in seen.picture.size]
    picture = seen.picture.resize(size)
    drawn = [(to_find(seen, categories), draw_marks(picture, marks_to_find(seen, categories, size)))]
    noised = seen.known.denoise if seen.known is not None else None
    for group in range(0 if noised is None else min(groups, noised.groups)):
        marks = marks_told(seen, group, categories, size)
        truth = true_marks(seen, group, size)
        drawn.append((heading(seen, group, marks), draw_marks(picture, [*truth, *marks])))
    return drawn


def to_find(seen: Seen, categories: Categories) -> str:
    count = len(seen.wanted.targets[0].labels)
    told = "" if seen.known is None or seen.known.label is None else f", told: {categories.names[seen.known.label[0]]}"
    return f"{brief(stem_of(seen.record), 30)}: {count} object{'' if count == 1 else 's'} to find{told}"


def marks_to_find(seen: Seen, categories: Categories, size: Sequence[int]) -> list[Mark]:
    (target,) = seen.wanted.targets
    labels = target.labels.tolist()
    return [Mark(box, label, categories.names[label]) for box, label in zip(corners(target.boxes, size), labels, strict=True)]


def marks_told(seen: Seen, group: int, categories: Categories, size: Sequence[int]) -> list[Mark]:
    """The noised boxes of a group in the colours of the labels that they tell, of which there is none where labels are not
    denoised. Flipped labels are written and on top; negatives are grey, whatever they tell.
    """
    noised, (target,), slots = seen.known.denoise, seen.wanted.reconstructed, slots_of(seen, group)
    truth, marks = target.labels[noised.objects[0, slots]].tolist(), []
    told = zip(noised.labels[0, slots].tolist(), noised.negative[0, slots].tolist(), truth, strict=True)
    for box, (label, negative, true) in zip(corners(noised.boxes[0, slots], size), told, strict=True):
        if negative:
            marks.append(Mark(box, label, "", NEGATIVE))
        elif label == len(categories):
            marks.append(Mark(box, label, "", UNKNOWN))
        elif label == true:
            marks.append(Mark(box, label, ""))
        else:
            marks.append(Mark(box, label, f"{categories.names[label]}, is {categories.names[true]}", thick=2))
    return sorted(marks, key=lambda mark: mark.thick)


def true_marks(seen: Seen, group: int, size: Sequence[int]) -> list[Mark]:
    """The boxes that a group is to become again: white, with black inside, to be seen on any ground."""
    (target,) = seen.wanted.reconstructed
    noised, slots = seen.known.denoise, slots_of(seen, group)
    boxes = corners(target.boxes[noised.objects[0, slots[~noised.negative[0, slots]]]], size)
    return [Mark(box, 0, "", *style) for box in boxes for style in ((BLACK, 2), (WHITE, 1))]


def slots_of(seen: Seen, group: int) -> Tensor:
    """The denoising queries of a group that hold an object."""
    noised = seen.known.denoise
    return group * noised.slots + noised.valid[0].view(noised.groups, noised.slots)[group].nonzero()[:, 0]


def heading(seen: Seen, group: int, marks: Sequence[Mark]) -> str:
    queries, flipped, far = len(marks), sum(mark.text != "" for mark in marks), sum(mark.color == NEGATIVE for mark in marks)
    told = f"{queries} quer{'y' if queries == 1 else 'ies'}, {flipped} label{'' if flipped == 1 else 's'} flipped"
    told += f", {far} negative{'' if far == 1 else 's'}" if far else ""
    open_to_all = "" if torch.as_tensor(seen.known.isolated).all() else ", seen by all queries"
    return f"group {group + 1} of {seen.known.denoise.groups}: {told}{open_to_all}"


def corners(boxes: Tensor, size: Sequence[int]) -> list[tuple[float, ...]]:
    """(M, 4) cxcywh in [0, 1] to x1, y1, x2, y2 in pixels of a picture of that width and height."""
    return [tuple(box) for box in (cxcywh_to_xyxy(boxes) * torch.tensor([*size, *size])).tolist()]


COLOURS = (
    "true boxes are black and white, noised ones have the colour of the label that the decoder is told (magenta: none, grey: "
    "a negative, to be seen as no object); where a label is flipped, lines are thick and both names written"
)


def caption(seen: Seen) -> str:
    """What there is to be seen in the pictures of an image."""
    record, (width, height) = seen.record, seen.picture.size
    turned = ", turned by its EXIF orientation" if seen.turned else ""
    about = (
        f"{in_a_line(record.path)}, image {record.id}, {record.width} x {record.height}{turned}, as {width} x {height} pixels"
    )
    if seen.known is None or seen.known.denoise is None:
        return f"{about}."
    return f"{about}. In the groups, {COLOURS}."


def caption_of_all(count: int, told: bool) -> str:
    about = f"{count} images as training sees them in epoch 1"
    return f"{about}, each beside the first group of its noised queries: {COLOURS}." if told else f"{about}."


def stem_of(record: ImageRecord) -> str:
    return in_a_line(PurePosixPath(str(record.path)).stem)


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """A picture below lines of text."""
    lines = textwrap.wrap(text, max(20, int(picture.width / LETTER)))
    sheet = Image.new("RGB", (picture.width, picture.height + HEADING * len(lines)), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for i, line in enumerate(lines):
        canvas.text((4, 3 + i * HEADING), line, fill="black", font=font)
    sheet.paste(picture, (0, HEADING * len(lines)))
    return sheet


def grid(cells: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows, about as wide as high."""
    width, height = (max(getattr(cell, side) for cell in cells) + GAP for side in ("width", "height"))
    columns = max(1, min(len(cells), round(math.sqrt(len(cells) * height / width))))
    sheet = Image.new("RGB", (columns * width, -(-len(cells) // columns) * height), "white")
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % columns * width, i // columns * height))
    return sheet
