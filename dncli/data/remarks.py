"""What is worth a line before a training, and is no defect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dndetr.console import shorten
from dndetr.data.annotations import CORNERS, EMPTY_BOX, OUTSIDE, REPEATED, Annotations

if TYPE_CHECKING:
    from dndetr.data.coco import Split


def remarks_on(split: Split) -> Iterator[str]:
    """Of the objects of a split, a sentence each."""
    if split.name == "train":
        yield from untaught(split)


def untaught(split: Split) -> Iterator[str]:
    """Classes of the head that no training image shows."""
    counts = split.labels.bincount(minlength=len(split.categories)).tolist()
    names = [name for name, count in zip(split.categories.names, counts, strict=True) if not count]
    if names:
        have = "has" if len(names) == 1 else "have"
        yield f"{len(names)} of the {len(counts)} classes {have} no object to train on: {shorten(names)}"


def mended(found: Annotations) -> Iterator[str]:
    """What is otherwise in training than in the annotations, with its number, and what looks wrong, in a line each."""
    number = Counter(defect.kind for defect in found.defects)
    kinds = (
        (EMPTY_BOX, "with nothing in their image are left out of training"),
        (OUTSIDE, "that leave their image are clipped in training"),
        (REPEATED, "are those of another object of the class, or nearly: annotated twice?"),
    )
    for kind, what in kinds:
        if number[kind]:
            yield f"{number[kind]} of {len(found.objects)} boxes {what}"
    ignored = sum(item.ignore for item in found.objects)
    if ignored:
        yield f'objects to be ignored ("ignore", or difficult), {ignored}, are not trained on, but counted, as COCO does'
    yield from (defect.message for defect in found.defects if defect.kind == CORNERS)


def by_split(remarks: Mapping[str, Sequence[str]]) -> list[str]:
    """The remarks on each split, once where several have the same."""
    splits: dict[str, list[str]] = {}
    for split, lines in remarks.items():
        for line in lines:
            splits.setdefault(line, []).append(split)
    return [f"{' and '.join(names)}: {line}" for line, names in splits.items()]
