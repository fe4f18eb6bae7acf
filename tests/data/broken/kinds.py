"""A kind of broken data: how it spoils a small sound dataset, and what is expected then.

A kind spoils one split, in memory or on disk. It is `refused`: every command that reads it names the mistake in these
words; `repaired`: the check names it and training goes on with these objects; or `sound`: it looks odd, and is read as a
viewer shows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tests.training.tiny import write_dataset

OBJECTS, IMAGES = 6, 4  # of each split while it is sound
WIDTH, HEIGHT = 40, 32
RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)
NAN, INFINITE = float("nan"), float("inf")
IMAGE, ITEM = "image 13: ", "image 13: annotation 0: "  # the one that most kinds spoil, in messages

Colours = dict[tuple[int, int], tuple[int, int, int]]  # what is seen at x, y


@dataclass
class Files:
    """A split on its way to be spoilt. The second image, with the first object, is the one that most kinds spoil."""

    root: Path
    split: str
    content: dict[str, Any]
    raw: bytes | None = None  # the whole annotation file, instead of `content`
    colours: Colours = field(default_factory=dict)  # that the second image must show

    @property
    def file(self) -> Path:
        return self.root / "annotations" / f"instances_{self.split}.json"

    @property
    def folder(self) -> Path:
        return self.root / self.split

    @property
    def outside(self) -> Path:
        """A folder beside the root."""
        folder = self.root.parent / f"outside-{self.split}"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def image(self) -> dict[str, Any]:
        return self.content["images"][1]

    @property
    def item(self) -> dict[str, Any]:
        return self.content["annotations"][0]

    @property
    def category(self) -> dict[str, Any]:
        return self.content["categories"][0]

    @property
    def picture(self) -> Path:
        return self.folder / self.image["file_name"]

    def named(self, name: str) -> Path:
        """The second image's file under another name, which its entry knows."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.picture.rename(path)
        self.image["file_name"] = name
        return path

    def draw(self, picture: Image.Image, name: str, colours: Colours, **options: Any) -> None:
        """Put another picture in the second image's place."""
        self.named(name).unlink()
        picture.save(self.picture, **options)
        self.colours = colours


class Kind(NamedTuple):
    name: str
    spoil: Callable[[Files], None]
    outcome: str  # refused, repaired or sound
    words: tuple[str, ...]  # of the message
    objects: int  # that are left
    picture: bool  # whether it is the picture that is spoilt


KINDS: list[Kind] = []


def write_broken(root: Path, kind: Kind, splits: tuple[str, ...] = ("train", "val")) -> dict[str, Files]:
    """A dataset with these splits spoilt."""
    write_dataset(root, train=IMAGES, val=IMAGES)
    written = {}
    for split in splits:
        files = written[split] = Files(root, split, {})
        files.content = json.loads(files.file.read_text())
        kind.spoil(files)
        if files.file.is_file():
            files.file.write_bytes(json.dumps(files.content).encode() if files.raw is None else files.raw)
    return written


def kind(outcome: str, *words: str, objects: int = OBJECTS, picture: bool = False) -> Callable:
    def add(spoil: Callable[[Files], None]) -> Callable[[Files], None]:
        KINDS.append(Kind(spoil.__name__, spoil, outcome, words, objects, picture))
        return spoil

    return add


def refused(*words: str, picture: bool = False) -> Callable:
    return kind("refused", *words, picture=picture)


def repaired(*words: str, objects: int) -> Callable:
    return kind("repaired", *words, objects=objects)


def sound(objects: int = OBJECTS, picture: bool = False) -> Callable:
    return kind("sound", objects=objects, picture=picture)


def values(part: str, key: str, *cases: tuple[str, Any, tuple[str, ...]]) -> None:
    """Kinds that give one entry (image, item or category) a wrong value; `...` takes the key away."""
    for name, value, words in cases:

        def spoil(files: Files, value: Any = value) -> None:
            getattr(files, part)[key] = value
            if value is ...:
                del getattr(files, part)[key]

        KINDS.append(Kind(f"{part}_{key}_{name}", spoil, "refused", words, OBJECTS, False))
