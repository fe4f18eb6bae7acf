"""Files that are written whole or not at all: whatever happens on the way, what was there is there, or the new content is."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dndetr.console import UserError


@contextmanager
def writable(path: str | Path, remedy: str = "") -> Iterator[None]:
    """What cannot be written in the block becomes a UserError that names `path` and says how to mend it."""
    try:
        yield
    except OSError as error:
        problem = f"{path}: cannot be written: {error.strerror or error}"
        raise UserError(f"{problem}; {remedy}" if remedy else problem) from error


@contextmanager
def new_folder(out: Path, remedy: str = "") -> Iterator[Path]:
    """A draft to fill, which becomes the folder `out` at the end of the block; an error in the block leaves nothing.

    Raises UserError where `out` holds something already or cannot be written.
    """
    if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise UserError(f"{out}: is not an empty folder; remove it or choose another place")
    draft = out.parent / f".{out.name}-{secrets.token_hex(4)}"
    try:
        with writable(out, remedy):
            draft.mkdir(parents=True)
            yield draft
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` at the end of the block, also for those who see a power cut.

    What was there stays as `previous` where that is given. Raises OSError; an error in the block leaves all as it was.
    """
    temporary = partial(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            keep(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def replace_text(path: Path, text: str) -> None:
    replace_bytes(path, text.encode())


def keep(path: Path, previous: Path) -> None:
    """Give the file a second name, as a copy where the file system has no such thing; `path` is there at every moment."""
    temporary = partial(previous)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, previous)
    finally:
        temporary.unlink(missing_ok=True)


def partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there: where it would be made."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
