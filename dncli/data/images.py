"""Image files of any kind to RGB pictures of 8 bits, turned as a viewer shows them unless a run decides otherwise."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dndetr.console import UserError, in_one_line
from dndetr.data.annotations import UNPRINTABLE

if TYPE_CHECKING:
    from dndetr.config import DataConfig

# Aerial pictures of hundreds of megapixels are read; a file that is far too small for its pixels is not a picture.
LARGE = 90_000_000  # pixels up to which no file can do harm
LARGEST = 2**30  # pixels that are unpacked at most, some 4 GB
PACKED = 500  # pixels a byte of a large file; photographs have up to some 20
Image.MAX_IMAGE_PIXELS = None  # `check_pixels` takes the place of Pillow's check, which knows no size of files

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation; 5 to 8 change width for height
BACK = {**UPRIGHT, 6: UPRIGHT[8], 8: UPRIGHT[6]}


@dataclass(frozen=True)
class Reading:
    """What a run decides about its pictures where a file leaves it open."""

    exif: str = "apply"  # or `ignore`: no picture is turned


AS_SHOWN = Reading()


def reading_of(config: DataConfig) -> Reading:
    return Reading(config.exif)


def read_image(path: str | Path, size: tuple[int, int] | None = None, reading: Reading = AS_SHOWN) -> Image.Image:
    """The picture in `path` as RGB.

    Its EXIF rotation is applied, unless `size` (width and height by the annotations, whose boxes count on them) fits only
    the picture as it is stored, or `reading` says otherwise. Raises UserError for files that cannot be read, and where
    the picture has another size.
    """
    with opened(path, size) as file:
        stored, told = stored_size(file), orientation_of(file) if is_tiff(file) else 1
        file.load()
        left = orientation_of(file)
        picture = as_rgb(file)
    orientation, turned = (told, left != told) if told > 1 else (left, False)  # Pillow turns TIFF, and TIFF alone, by itself
    apply = reading.exif == "apply" and not (size is not None and fits_as_stored(stored, orientation, size))
    if apply != turned and orientation in UPRIGHT:
        picture = picture.transpose((UPRIGHT if apply else BACK)[orientation])
    if size is not None and picture.size != tuple(size):
        raise SizeError(
            f"{in_a_line(path)}: the image is {picture.size[0]} x {picture.size[1]}, its annotations say {size[0]} x {size[1]}"
            + ("" if picture.size == stored else f" (stored as {stored[0]} x {stored[1]})")
            + "; correct width, height and boxes there"
        )
    return picture


@contextmanager
def opened(path: str | Path, size: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """The file, open in Pillow. Whatever goes wrong with it until it is closed becomes a UserError."""
    try:
        check_file(path)
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:  # Pillow's are not about anything to mend
            check_pixels(path, file.size, size)
            yield file
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever they like
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as an image ({reason(error)})"
        raise UserError(f"{in_a_line(path)}: {what}; mend or remove it, and its annotations") from error


class SizeError(UserError):
    """The image has another size than its annotations say."""


def check_file(path: str | Path) -> None:
    """Refuse what is no file with something in it: reading a pipe would wait for ever, and a device never end."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size == 0:
        raise ValueError("it is empty")


def check_pixels(path: str | Path, stored: tuple[int, int], size: tuple[int, int] | None) -> None:
    """Refuse to unpack a large picture that nobody announced, that the memory has no room for, or that is a bomb."""
    pixels, length = stored[0] * stored[1], os.path.getsize(path)
    if pixels <= LARGE:
        return
    large = f"{in_a_line(path)}: the image is {stored[0]} x {stored[1]}"
    if size is not None and sorted(size) != sorted(stored):
        raise SizeError(f"{large}, its annotations say {size[0]} x {size[1]}; correct width, height and boxes there")
    if pixels > LARGEST:
        raise UserError(f"{large}, which is too large to be read at once; cut it, and its annotations, into tiles")
    if pixels > PACKED * length:
        told = f"{large} in {length} bytes, which looks like a decompression bomb, so it is not unpacked"
        raise UserError(f"{told}; remove it, and its annotations, or save it with less compression")


def in_a_line(path: str | Path) -> str:
    """A path to be shown, whatever a stranger put into its name."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(path))


def reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it has no image format that is known here"
    return in_one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def is_tiff(file: Image.Image) -> bool:
    return hasattr(file, "tag_v2")


def stored_size(file: Image.Image) -> tuple[int, int]:
    """Width and height before any rotation, which Pillow counts in for TIFF."""
    if not is_tiff(file):
        return file.size
    return file.tag_v2[ExifTags.Base.ImageWidth], file.tag_v2[ExifTags.Base.ImageLength]


def orientation_of(file: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 where there is none."""
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not spoil the pixels
        return 1
    return orientation if orientation in UPRIGHT else 1


def fits_as_stored(stored: tuple[int, int], orientation: int, size: tuple[int, int]) -> bool:
    """Whether the picture as it is stored has that size, and the turned one has not."""
    return orientation >= 5 and stored == tuple(size) and size[0] != size[1]


def as_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: 16 bits scaled, not cut off; what is transparent on white, as viewers show it."""
    if picture.mode in SIXTEEN_BITS:
        picture = eight_bits(np.asarray(picture, dtype=np.float64) / 257)
    elif picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        peak = values.max(initial=0.0)  # floats come as 0 .. 1, as 0 .. 255 or as 0 .. 65535
        picture = eight_bits(values * 255 if peak <= 1 else values if peak <= 255 else values / 257)
    elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def eight_bits(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
