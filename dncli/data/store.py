"""Where a dataset lies: a folder, or a .zip of one, read where it is. Names in it are written with / on every system."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from dndetr.console import UserError, in_one_line

FILE, FOLDER, LINK, OTHER = "file", "folder", "link", "other"
BOMB = 64 * 2**20, 100  # bytes and times its packed size: what unpacks to more than both is no annotation and no picture
ENCRYPTED = 0x1  # bit of a zip entry's flags
HIDDEN = ("__MACOSX", ".DS_Store")  # what a Mac packs beside the data


@dataclass(frozen=True)
class Entry:
    """A file inside of a zip file, opened like a `Path`. It may be sent to another process."""

    zip: Path
    name: str

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        try:
            return unzipped(self.zip, os.getpid()).read(self.name)
        except KeyError as error:
            raise FileNotFoundError(str(self)) from error
        except (zipfile.BadZipFile, EOFError, NotImplementedError, zipfile.zlib.error) as error:
            raise OSError(f"its data in the zip file are damaged ({in_one_line(error)})") from error

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        return unzipped(self.zip, os.getpid()).getinfo(self.name).file_size

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def __str__(self) -> str:
        return f"{self.zip}/{self.name}"


Place = Path | Entry


@lru_cache(maxsize=4)
def unzipped(path: Path, process: int) -> zipfile.ZipFile:
    """Each process opens a zip file itself: forks would move one another's place in a shared one."""
    return zipfile.ZipFile(path)


class Store(Protocol):
    """A tree of files."""

    root: Path

    def listing(self, folder: str = "") -> dict[str, str]:
        """The names in a folder, each with its kind: FILE, FOLDER, LINK or OTHER; nothing where there is no such folder."""

    def place(self, name: str) -> Place:
        """What stands for a file: to be opened, and to be shown."""


class Folder:
    """A folder on disk. Each folder in it is listed once: much faster than a look at each of 118,000 files."""

    def __init__(self, root: Path):
        self.root = root
        self.listed: dict[str, dict[str, str]] = {}

    def listing(self, folder: str = "") -> dict[str, str]:
        if folder not in self.listed:
            try:
                with os.scandir(self.root / folder) as entries:
                    self.listed[folder] = {entry.name: kind_of(entry) for entry in entries}
            except (OSError, ValueError):
                self.listed[folder] = {}
        return self.listed[folder]

    def place(self, name: str) -> Path:
        return self.root / name


def kind_of(entry: os.DirEntry) -> str:
    if entry.is_symlink():
        return LINK
    return FOLDER if entry.is_dir() else FILE if entry.is_file() else OTHER


class Zipped:
    """A zip file. Raises UserError where it is damaged, encrypted, or holds what should not be unpacked."""

    def __init__(self, root: Path):
        self.root = root
        self.names = {}  # as / writes them -> as the file does
        for info in entries_of(root):
            name = info.filename.replace("\\", "/")  # as zip files that Windows made have it
            check_entry(root, info, name)
            if not info.is_dir() and not name.startswith(HIDDEN):
                self.names[name] = info.filename

    @cached_property
    def tree(self) -> dict[str, dict[str, str]]:
        """What each folder holds."""
        tree: dict[str, dict[str, str]] = {}
        for name in self.names:
            kind = FILE
            while name:
                folder, _, last = name.rpartition("/")
                tree.setdefault(folder, {}).setdefault(last, kind)
                name, kind = folder, FOLDER
        return tree

    def listing(self, folder: str = "") -> dict[str, str]:
        return self.tree.get(folder, {})

    def place(self, name: str) -> Entry:
        return Entry(self.root, self.names.get(name, name))


class Within:
    """A folder of a store, as a store."""

    def __init__(self, store: Store, folder: str):
        self.store, self.folder = store, folder
        self.root = store.root / folder

    def listing(self, folder: str = "") -> dict[str, str]:
        return self.store.listing(join(self.folder, folder))

    def place(self, name: str) -> Place:
        return self.store.place(join(self.folder, name))


def entries_of(path: Path) -> list[zipfile.ZipInfo]:
    try:
        return unzipped(path, os.getpid()).infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a zip file ({in_one_line(error)}); pack it again") from error


def check_entry(path: Path, info: zipfile.ZipInfo, name: str) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or parts.parts[:1] and parts.parts[0].endswith(":"):
        raise UserError(f"{path}: holds {in_one_line(name)!r}, which leads out of it; pack it again without that file")
    if info.flag_bits & ENCRYPTED:
        raise UserError(f"{path}: {in_one_line(name)} is encrypted; unpack it with its password and give the folder")
    if info.file_size > max(BOMB[0], BOMB[1] * info.compress_size):
        raise UserError(
            f"{path}: {in_one_line(name)} has {info.compress_size} bytes and would unpack to {info.file_size}, which looks "
            "like a decompression bomb, so nothing is unpacked; pack it again without that file"
        )


def open_store(root: Path) -> Store:
    """The folder or zip file at `root`. Raises UserError."""
    if os.path.isdir(root):  # unlike Path's, it answers for names that no system allows
        return Folder(root)
    if not os.path.isfile(root):
        raise UserError(f"{root}: no such folder; set data.root to a dataset, or to shapes")
    if not zipfile.is_zipfile(root):
        raise UserError(f"{root}: is a file, but not a zip file; set data.root to the folder or the .zip of a dataset")
    return Zipped(root)


def is_file(store: Store, name: str) -> bool:
    """Whether there is a regular file of that name, at the end of a link or not."""
    folder, _, last = name.rpartition("/")
    kind = store.listing(folder).get(last)
    return kind == FILE or (kind == LINK and os.path.isfile(store.place(name)))


def is_folder(store: Store, name: str) -> bool:
    folder, _, last = name.rpartition("/")
    kind = store.listing(folder).get(last)
    return not name or kind == FOLDER or (kind == LINK and os.path.isdir(store.place(name)))


def join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def files_below(store: Store, folder: str) -> list[str]:
    """All files in a folder and in those below it, by name; what begins with a dot is passed over."""
    found, waiting = [], [folder]
    while waiting:
        here = waiting.pop()
        for name in store.listing(here):
            path = join(here, name)
            if name.startswith("."):
                continue
            if is_file(store, path):
                found.append(path)
            elif store.listing(here)[name] == FOLDER:
                waiting.append(path)
    return sorted(found)
