"""Where a split of a dataset is read from, and what finding it takes.

A finder is given the store and returns the sources that it finds, by split; one set of images that is neither for training
nor for validation counts as `train`. Where two files could be meant, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from dndetr.console import UserError
from dndetr.data.annotations import Annotations
from dndetr.data.images import is_picture
from dndetr.data.store import Place, Store, files_below, is_folder, join
from dndetr.data.suspects import find_suspects

Reader = Callable[[Annotations], None]

SPLITS = ("train", "val")

CALLED = {"train": ("train2017", "train", "training"), "val": ("val2017", "val", "valid", "validation")}  # in lower case


class Source(NamedTuple):
    """Where one split is read from, and how."""

    layout: str
    name: str  # in the store
    store: Store
    read: Reader
    file: Place | None = None  # where it is not that name in the store

    def annotations(self, exif: str = "apply") -> Annotations:
        """Never raises on bad content: see `.defects`. `exif` is data.exif."""
        found = Annotations(self.file or self.store.place(self.name), self.store, exif)
        self.read(found)
        find_suspects(found)
        return found


Sources = dict[str, Source]


def one_of(store: Store, names: Sequence[str], what: str) -> str | None:
    """The only name, None for none; UserError where two could be meant."""
    if len(names) > 1:
        raise UserError(
            f"{store.root}: {' and '.join(names)} could both be {what}: name the one that you mean, with "
            "data.train=FILE data.val=FILE data.images=DIR, or move the other away"
        )
    return names[0] if names else None


def called(names: Iterable[str], split: str) -> list[str]:
    """Those of the names that mean a split, in the order of CALLED."""
    return sorted((n for n in names if n.lower() in CALLED[split]), key=lambda n: (CALLED[split].index(n.lower()), n))


def folders_with(store: Store, what: str, has: Callable[[str], bool]) -> dict[str, str]:
    """The folder of each split in which there is something."""
    found = {}
    for split in SPLITS:
        folders = [name for name in called(store.listing(), split) if is_folder(store, name) and has(name)]
        if folder := one_of(store, folders, f"the {what} of the {split} split"):
            found[split] = folder
    return found


def lines_in(store: Store, name: str) -> list[str]:
    """The lines of a list of names or classes, without blank ones and the blanks around the others."""
    lines = store.place(name).read_bytes().decode("utf-8-sig", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def pictures_below(store: Store, folder: str) -> list[str]:
    return [name for name in files_below(store, folder) if is_picture(name)]


def pictures_in(store: Store, folder: str) -> list[str]:
    return sorted(join(folder, name) for name in store.listing(folder) if is_picture(name))


def all_but(split: str, names: dict[str, list[str]]) -> list[str]:
    """What the other splits have, of lists by split."""
    return [name for other, listed in names.items() if other != split for name in listed]
