"""A look at a dataset before anyone trains on it: what it holds, and every defect with its place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dndetr.console import UserError
from dndetr.data import annotations as kinds
from dndetr.data.annotations import Annotations, Defect, unique_names
from dndetr.data.boxes import inside
from dndetr.data.coco import Categories, ImageRecord, foreign, is_trained_on, lacking, leave_out_unused, pack
from dndetr.data.formats.source import SPLITS
from dndetr.data.images import AS_SHOWN, Reading, SizeError, read_header, read_image
from dndetr.data.layouts import Dataset
from dndetr.data.remarks import by_split, remarks_on
from dndetr.data.survey import Survey, glance, survey

SIDES = {"small": 32, "medium": 96, "large": math.inf}  # COCO's sizes: root of the box's area in pixels, below


@dataclass(frozen=True)
class Counts:
    """What one split holds; crowds are counted apart, boxes with nothing in their image not at all."""

    images: int
    with_objects: int
    objects: int
    crowds: int
    most_objects: int  # in one image
    of_class: dict[str, int]  # objects by the name of their class
    of_size: dict[str, int]  # objects by COCO's sizes
    sides: tuple[float, float, float] | None  # root of the box's area: least, median, greatest
    pictures: tuple[tuple[int, int], tuple[int, int]] | None  # least and greatest width, least and greatest height


@dataclass(frozen=True)
class Report:
    """All that was found; `splits` lacks those that are not there at all."""

    dataset: Dataset
    splits: dict[str, Counts] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # what was assumed, and what else is worth a line
    defects: list[Defect] = field(default_factory=list)
    pictures: dict[str, Survey] = field(default_factory=dict)


def check_dataset(
    dataset: Dataset,
    queries: int | None = None,
    track: Callable[[Iterable], Iterable] = iter,
    reading: Reading = AS_SHOWN,
) -> Report:
    """Examine both splits of a dataset, and open every image.

    `queries` is the number of the detector's queries, which no image should have more objects than; `track` wraps the
    images that are opened, for a progress bar; `reading` says how pictures are read, where it leaves the range open as a
    training on these would. Bad data never raises: it is reported.
    """
    report = Report(dataset)
    known = Categories((), ())  # those of the training split
    remarks = {}
    for split in SPLITS:
        try:
            found = dataset.annotations(split)
        except UserError as error:
            report.defects.append(Defect(kinds.NO_SPLIT, str(dataset.root), None, None, "; ".join(error.lines)))
            continue
        add_crowded(found, queries)
        report.pictures[split] = add_unreadable(found, track, reading)
        reading = report.pictures[split].reading  # the range is that of the training split
        known = known or Categories.named(found.categories)
        add_foreign(found, known)
        if not found.defects and (lack := lacking(found, split)):
            found.add(kinds.NOTHING, lack)
        report.splits[split] = count(found)
        remarks[split] = [*found.remarks, *remarks_on(pack(found, split, Categories.named(found.categories)))]
        report.defects.extend(found.defects)
    report.remarks.extend(by_split(remarks))
    return report


def add_crowded(found: Annotations, queries: int | None) -> None:
    per_image = Counter(item.image_id for item in found.objects if not item.crowd)
    for image_id, objects in per_image.items():
        if queries is not None and objects > queries:
            found.add(kinds.TOO_MANY, f"has {objects} objects, more than the {queries} queries can find", image_id)


def add_unreadable(found: Annotations, track: Callable[[Iterable], Iterable], reading: Reading) -> Survey:
    """Open every picture as a training would read it, and say what was seen."""
    missing = {defect.image_id for defect in found.defects if defect.kind in (kinds.NO_IMAGE, kinds.BAD_PATH)}
    there = [image for image in found.images.values() if image.id not in missing]
    records = [ImageRecord(image.id, found.place(image), image.width, image.height) for image in there]
    reading = survey(records, reading).reading
    glances = []
    for image in track(records):
        try:
            size = (image.width, image.height)
            picture = read_image(image.path, size, reading)
            glances.append(glance(image.path, size, read_header(image.path), picture))
        except UserError as error:
            kind = kinds.WRONG_SIZE if isinstance(error, SizeError) else kinds.UNREADABLE
            found.add(kind, " ".join(error.lines), image.id)
    return Survey(len(glances), tuple(glances), reading)


def add_foreign(found: Annotations, known: Categories) -> None:
    """Categories that differ from the training split's: the detector would not know them."""
    leave_out_unused(found, known)
    for line in foreign(found, known):
        found.add(kinds.UNKNOWN_CATEGORY, line)


def count(found: Annotations) -> Counts:
    objects = [item for item in found.objects if is_trained_on(item, found)]
    images = (found.images[item.image_id] for item in objects)
    boxes = [inside(item.box, image.width, image.height) for item, image in zip(objects, images, strict=True)]
    per_image = Counter(item.image_id for item in objects)
    per_class = Counter(item.category_id for item in objects)
    sides = sorted(math.sqrt(width * height) for _, _, width, height in boxes)
    sizes = Counter(next(name for name, limit in SIDES.items() if side < limit) for side in sides)
    widths, heights = ([getattr(image, side) for image in found.images.values()] for side in ("width", "height"))
    return Counts(
        images=len(found.images),
        with_objects=len(per_image),
        objects=len(objects),
        crowds=sum(item.crowd for item in found.objects),
        most_objects=max(per_image.values(), default=0),
        of_class={name: per_class[i] for i, name in unique_names(found.categories).items()},
        of_size={name: sizes[name] for name in SIDES},
        sides=(sides[0], sides[len(sides) // 2], sides[-1]) if sides else None,
        pictures=((min(widths), max(widths)), (min(heights), max(heights))) if found.images else None,
    )


def lines(report: Report, most: int = 100) -> list[str]:
    """The report as plain text, with `most` defects at most."""
    text = [report.dataset.line]
    for split, counts in report.splits.items():
        text += ["", f"{split}: {counts.images} images, {counts.with_objects} with objects, "
                     f"{counts.images - counts.with_objects} without"]  # fmt: skip
        text.append(f"  {counts.objects} objects, at most {counts.most_objects} in an image, and {counts.crowds} crowds")
        if counts.pictures:
            (narrow, wide), (low, high) = counts.pictures
            text.append(f"  images {narrow} to {wide} wide, {low} to {high} high")
        text += [f"  {line}" for line in report.pictures[split].lines()]
        if counts.sides:
            least, median, greatest = counts.sides
            text.append(f"  sides of objects (root of the area): {least:.1f} to {greatest:.1f} pixels, median {median:.1f}")
            text.append("  " + ", ".join(f"{name} {number}" for name, number in counts.of_size.items()))
        text.append(f"  {len(counts.of_class)} classes: " + ", ".join(f"{k} {n}" for k, n in counts.of_class.items()))
    if report.remarks:
        text += ["", *report.remarks]
    if not report.defects:
        return [*text, "", "no defects"]
    kinds_found = Counter(defect.kind for defect in report.defects)
    total = f"{len(report.defects)} defect{'s' if len(report.defects) > 1 else ''}"
    text += ["", f"{total}: " + ", ".join(f"{kind} {number}" for kind, number in kinds_found.items())]
    text += [f"  {defect.kind}: {defect}" for defect in report.defects[:most]]
    return text + ([f"  ... and {len(report.defects) - most} more"] if len(report.defects) > most else [])
