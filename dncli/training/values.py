"""Files of tensors and plain values: written whole or not at all, checked by a digest, read without running code.

A file is what torch.save writes, so that torch.load(weights_only=True) opens it anywhere, and behind it the SHA-256 of that.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from dndetr.console import UserError
from dndetr.files import replacing

MARK = b"\ndndetr sha256 "
TRAILER = len(MARK) + hashlib.sha256().digest_size


def save_values(path: Path, values: dict[str, Any], previous: Path | None = None) -> None:
    """Replace the file at `path`; the old values stay as `previous` where that is given. Raises OSError."""
    with replacing(path, previous) as file:
        hashed = Hashed(file)
        try:
            torch.save(values, hashed)
        except RuntimeError as error:  # torch's own words for a write that failed
            raise hashed.failure or error from error
        file.write(MARK + hashed.hash.digest())


class Hashed:
    """Passes on what is written, with its SHA-256. Keeps the error of a write, which torch would not tell."""

    def __init__(self, file: IO[bytes]):
        self.file, self.hash, self.failure = file, hashlib.sha256(), None

    def write(self, block: bytes) -> int:
        self.hash.update(block)
        try:
            return self.file.write(block)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


class Damaged(UserError):
    """The file is not what was written."""


def load_values(path: Path, *, trust: bool = False) -> tuple[Any, bool]:
    """What a file holds, on the CPU, and whether it has the digest of `save_values`; `trust` opens files that can run code.

    Raises Damaged where the file is not whole, UserError where it cannot be read or is not trusted.
    """
    try:
        signed = is_signed(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of other tools' files
            return torch.load(path, map_location="cpu", weights_only=not trust), signed
    except pickle.UnpicklingError as error:
        if trust or not is_pickle(path):
            raise Damaged(f"{path}: {NOT_WHOLE}") from error
        raise UserError(
            f"{path}: holds more than tensors and plain values, and opening that can run code; --trust-pickle opens it, "
            "if you trust who made it"
        ) from error
    except Exception as error:  # of a file that is no pickle torch may raise anything
        raise Damaged(f"{path}: {NOT_WHOLE}") from error


NOT_WHOLE = "not a whole checkpoint (empty, cut off, or another kind of file)"


def is_signed(path: Path) -> bool:
    """Whether there is a digest at the end of the file. Raises Damaged where it belongs to other content."""
    size = path.stat().st_size - TRAILER
    if size < 0:
        return False
    with open(path, "rb") as file:
        file.seek(size)
        mark, digest = file.read(len(MARK)), file.read()
        if mark != MARK:
            return False
        file.seek(0)
        found = hashlib.sha256()
        while size:
            block = file.read(min(size, 2**20))
            found.update(block)
            size -= len(block)
    if found.digest() != digest:
        raise Damaged(f"{path}: damaged: its content is not what was written (the SHA-256 at its end differs)")
    return True


def is_pickle(path: Path) -> bool:
    """Whether the file is at least of the kind that torch or pickle write."""
    with open(path, "rb") as file:
        return file.read(2)[:1] == b"\x80" or zipfile.is_zipfile(path)
