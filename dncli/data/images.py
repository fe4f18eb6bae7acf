"""Image files of any kind to RGB pictures of 8 bits, turned as a viewer shows them."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dndetr.console import UserError, in_one_line
from dndetr.data.annotations import UNPRINTABLE

# Aerial pictures of hundreds of megapixels are read; a file that is far too small for its pixels is not a picture.
LARGE = 90_000_000  # pixels up to which no file can do harm
LARGEST = 2**30  # pixels that are unpacked at most, some 4 GB
PACKED = 500  # pixels a byte of a large file; photographs have up to some 20
Image.MAX_IMAGE_PIXELS = None  # `check_pixels` takes the place of Pillow's check, which knows no size of files

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture in `path` as RGB.

    Its EXIF rotation is applied, unless `size` (width and height by the annotations, whose boxes count on them) fits only
    the picture as it is stored. Raises UserError for files that cannot be read, and where neither has that size.
    """
    try:
        check_file(path)
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:  # Pillow's are not about anything to mend
            check_pixels(path, file.size, size)
            file.load()
            stored = file.size
            picture = as_rgb(rotated(file, size))
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever they like
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as an image ({reason(error)})"
        raise UserError(f"{in_a_line(path)}: {what}; mend or remove it, and its annotations") from error
    if size is not None and picture.size != tuple(size):
        raise SizeError(
            f"{in_a_line(path)}: the image is {picture.size[0]} x {picture.size[1]}, its annotations say {size[0]} x {size[1]}"
            + ("" if picture.size == stored else f" (stored as {stored[0]} x {stored[1]})")
            + "; correct width, height and boxes there"
        )
    return picture


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


def rotated(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """`picture` turned by its EXIF orientation, unless only the unturned one has that size."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not spoil the pixels
        return picture
    swaps = orientation in (5, 6, 7, 8)
    if orientation not in UPRIGHT or (swaps and size is not None and picture.size == tuple(size) and size[0] != size[1]):
        return picture
    return picture.transpose(UPRIGHT[orientation])


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


def is_picture(name: str) -> bool:
    """Whether a file looks like an image by its name."""
    return os.path.splitext(name)[1].lower() in Image.registered_extensions()


def size_of(place: Path) -> tuple[int, int] | str:
    """Width and height of an image as a viewer shows it, from its first bytes, or why it cannot be read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(place) as file:
            orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
            return file.size[::-1] if orientation in (5, 6, 7, 8) else file.size
    except Exception as error:  # decoders raise whatever they like
        return f"cannot be read as an image ({reason(error)})"
