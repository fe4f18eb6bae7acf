"""The pictures that files and folders on a command line mean, and what of them is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dndetr.console import UserError
from dndetr.data.images import in_a_line, read_header, suffixes


@dataclass
class Search:
    """What was found, in order."""

    places: dict[Path, Path] = field(default_factory=dict)  # each file, and where it lies below the path that was given
    passed: Counter[str] = field(default_factory=Counter)  # files that are not read, by their suffix
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was passed over, in a line if anything was."""
        if not self.passed:
            return []
        count = self.passed.total()
        return [f"passed over {count} file{'s' * (count > 1)} of no kind that is read here: {counted(self.passed)}"]


def find_images(paths: Sequence[str | Path]) -> Search:
    """All files that are named, whatever they are called, and those of the folders and of all folders below whose names or,
    without a suffix, contents are those of pictures. Hidden files and folders are left alone.
    """
    found = Search()
    for path in map(Path, paths):
        if os.path.isdir(path):  # unlike Path's, it answers for names that no system allows
            look_into(path, found)
        elif os.path.exists(path):
            found.places.setdefault(path, Path(path.name))
        else:
            found.problems.append(f"{in_a_line(path)}: no such file or folder")
    return found


def look_into(folder: Path, found: Search) -> None:
    known = suffixes()
    pictures, passed, problems = [], Counter(), len(found.problems)
    for file in walk(folder, found.problems):
        suffix = file.suffix.lower()
        if suffix in known or (not suffix and is_picture(file)):
            pictures.append(file)
        else:
            passed[suffix or "without a suffix"] += 1
    found.passed += passed
    for file in pictures:
        found.places.setdefault(file, file.relative_to(folder))
    if not pictures and len(found.problems) == problems:
        found.problems.append(f"{in_a_line(folder)}: holds no images" + (f" but {counted(passed)}" if passed else ""))


def walk(folder: Path, problems: list[str]) -> Iterator[Path]:
    """Regular files in a folder and below, in order; what cannot be listed goes to `problems`. A folder that several links
    lead to is gone into once.
    """

    def refused(error: OSError) -> None:
        problems.append(f"{in_a_line(error.filename)}: cannot be listed: {error.strerror}")

    seen = {os.path.realpath(folder)}
    for path, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        below = {name: os.path.realpath(os.path.join(path, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, real in below.items() if real not in seen and not seen.add(real)]
        visible = (Path(path) / name for name in sorted(files) if not name.startswith("."))
        yield from filter(os.path.isfile, visible)


def is_picture(file: Path) -> bool:
    try:
        return bool(read_header(file))
    except UserError:
        return False


def counted(passed: Counter[str]) -> str:
    """`12 .heic, 3 .jxl`, the most first."""
    return ", ".join(f"{number} {in_a_line(suffix)}" for suffix, number in passed.most_common())
