"""Which file an annotation means by its file_name: the one of that name, or the only one a folder further up or down."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from dndetr.console import brief
from dndetr.data.annotations import BAD_PATH, NO_IMAGE, SAME_NAME, Annotations, Image
from dndetr.data.store import FILE, FOLDER, LINK, Store, is_file, is_folder, join


def find_images(found: Annotations, folder: str) -> None:
    """Give each image its place in the store, where `folder` is the one that its images should be in.

    What is not there, could be one of two, or lies outside of the root is a defect; what is found elsewhere is remarked on.
    """
    first: dict[str, Image] = {}
    moved: Counter[str] = Counter()
    example: dict[str, str] = {}
    found.folder, inside = folder, Inside(found.store, folder)
    for image in list(found.images.values()):
        exact = join(folder, image.file_name)
        names = [exact] if is_file(found.store, exact) else elsewhere(found.store, folder, image.file_name)
        if len(names) != 1:
            found.add(NO_IMAGE, why_not_one(found.store, exact, names), image.id)
            continue
        (name,) = names
        if leads := inside.leaves(name):
            told = f"{found.store.place(name)} leads out of the data root, to {leads}"
            found.add(BAD_PATH, f"{told}; put the file itself there, or let data.root lie around both", image.id)
            continue
        other = first.setdefault(name, image)
        if other is not image:
            told = f"file_name {brief(repr(image.file_name))} is that of image {other.id} too; list each file once"
            found.add(SAME_NAME, told, image.id)
        if name != exact:
            where = name.rpartition("/")[0] or "the root"
            moved[where] += 1
            example.setdefault(where, f"{image.file_name} is {name}")
        found.images[image.id] = replace(image, file_name=name)
    for where, count in moved.items():
        files = f"{count} file_name{'s are' if count > 1 else ' is'}"
        found.remarks.append(f"{files} not in {folder or 'the root'} but found in {where}: {example[where]}")


def elsewhere(store: Store, folder: str, name: str) -> list[str]:
    """The files that a name may mean elsewhere: around `folder`, in the folders below it, or without folders of its own."""
    parent = folder.rpartition("/")[0]
    parts = name.split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    bases = [folder, *([parent] if folder else []), *below(store, folder)]
    candidates = (join(base, tail) for base in bases for tail in tails)
    return list(dict.fromkeys(candidate for candidate in sorted(candidates) if is_file(store, candidate)))


def below(store: Store, folder: str) -> Iterator[str]:
    """The folders directly in a folder."""
    for name, kind in store.listing(folder).items():
        if kind == FOLDER or (kind == LINK and is_folder(store, join(folder, name))):
            yield join(folder, name)


class Inside:
    """Tells links that lead out of the data root, the folder around the images' own; either may be a link itself."""

    def __init__(self, store: Store, folder: str):
        self.store = store
        roots = {folder, folder.rpartition("/")[0], ""}
        self.roots = [os.path.realpath(store.place(root)) for root in roots] if isinstance(store.place(""), Path) else []
        self.folders: dict[str, bool] = {}

    def leaves(self, name: str) -> str | None:
        """Where a file really lies, if that is outside."""
        if not self.roots:
            return None
        parent, _, last = name.rpartition("/")
        if parent not in self.folders:
            self.folders[parent] = is_within(self.store.place(parent), self.roots)
        if self.folders[parent] and self.store.listing(parent).get(last) == FILE:
            return None
        place = self.store.place(name)
        return None if is_within(place, self.roots) else os.path.realpath(place)


def is_within(path: Path, roots: Sequence[str]) -> bool:
    """Whether `path` lies below one of `roots` when all links are followed."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(root) for root in roots)


def why_not_one(store: Store, name: str, found: Sequence[str]) -> str:
    place = brief(str(store.place(name)))
    if found:
        several = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        return f"{place} does not exist, and it could be any of {several}; write in file_name which"
    if is_folder(store, name):
        return f"{place} is a folder; file_name must name a file"
    folder, _, last = name.rpartition("/")
    if last in store.listing(folder):
        return f"{place} is {'not a regular file' if os.path.exists(store.place(name)) else 'a link that leads nowhere'}"
    return f"{place} does not exist" + near(store, name)


def near(store: Store, name: str) -> str:
    """The one file that differs in what label tools change: case, percent signs, how accents are written, spaces."""
    folder, _, last = name.rpartition("/")
    alike = [other for other in store.listing(folder) if plain(other) == plain(last)]
    return f"; {join(folder, alike[0])!r} does: write its name as it is" if len(alike) == 1 else ""


def plain(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).casefold().strip()
