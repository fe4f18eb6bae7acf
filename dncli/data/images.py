"""Image files of any kind to RGB pictures of 8 bits, turned as a viewer shows them unless a run decides otherwise."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from operator import methodcaller
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dndetr.console import UserError, in_one_line
from dndetr.data.annotations import UNPRINTABLE
from dndetr.data.store import Entry, Place

if TYPE_CHECKING:
    from dndetr.config import DataConfig

# Aerial pictures of hundreds of megapixels are read; a file that is far too small for its pixels is not a picture.
LARGE = 90_000_000  # pixels up to which no file can do harm
LARGEST = 2**30  # pixels that are unpacked at most, some 4 GB
PACKED = 500  # pixels a byte of a large file; photographs have up to some 20
Image.MAX_IMAGE_PIXELS = None  # `check_pixels` takes the place of Pillow's check, which knows no size of files

ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")  # modes
SIXTEEN, INTEGERS, FLOATS, COLOUR = "16-bit", "integers", "floats", "16-bit colour"
GREY = {**dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), SIXTEEN), "I": INTEGERS, "F": FLOATS}  # by mode
FOREIGN = "B" if sys.byteorder == "little" else "L"
OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for order, other in (("L", "B"), ("B", "L"), ("N", FOREIGN))
}  # of colours of 16 bits Pillow keeps the upper byte: by how they lie, the name of the order that gives the lower one
NODATA = 42113  # TIFF tag of GDAL: the number that means none
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
    """What a run decides about its pictures where a file leaves it open: data.exif, data.alpha and data.range.

    A picture of 8 bits a channel, or of fewer, has its colours. Of other numbers (integers of 16 and 32 bits, floats, colours
    of 16 bits) `range` is seen as 0 to 255: what is below as 0, what is above as 255, NaN and GDAL's nodata as 0. Without a
    range integers are seen from 0 to 65535, of colours the upper byte, and floats from 0 to 1, 255 or 65535, the first of
    them that no pixel exceeds.
    """

    exif: str = "apply"  # or `ignore`: no picture is turned
    alpha: str = "white"  # what is transparent is seen on white; or `drop`: as if nothing were transparent
    range: tuple[float, float] | None = None


AS_SHOWN = Reading()


def reading_of(config: DataConfig) -> Reading:
    return Reading(config.exif, config.alpha, config.bounds)


def read_image(path: str | Place, size: tuple[int, int] | None = None, reading: Reading = AS_SHOWN) -> Image.Image:
    """The picture in `path` as RGB.

    Its EXIF rotation is applied, unless `size` (width and height by the annotations, whose boxes count on them) fits only
    the picture as it is stored, or `reading` says otherwise. Raises UserError for files that cannot be read, and where
    the picture has another size.
    """
    with opened(path, size) as file:
        stored, told = stored_size(file), orientation_of(file) if is_tiff(file) else 1
        kind = kind_of(file)
        file.load()
        left = orientation_of(file)
        picture = as_rgb(path, file, kind, reading)
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
def opened(path: str | Place, size: tuple[int, int] | None = None) -> Iterator[Image.Image]:
    """The file, open in Pillow. Whatever goes wrong with it until it is closed becomes a UserError."""
    try:
        length = check_file(path)
        with warnings.catch_warnings(action="ignore"), pillow(path) as file:  # Pillow's are not about anything to mend
            check_pixels(path, file.size, size, length)
            yield file
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever they like
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as an image ({reason(error)})"
        raise UserError(f"{in_a_line(path)}: {what}; mend or remove it, and its annotations") from error


class Header(NamedTuple):
    """What a file says of its picture before it is unpacked."""

    stored: tuple[int, int]  # width and height before any rotation
    orientation: int  # EXIF's, 1 where there is none
    kind: str | None  # of its numbers, see `kind_of`
    alpha: bool  # whether some of it may be transparent
    several: bool  # pages or frames, of which the first is the picture


def read_header(path: str | Place) -> Header:
    """Raises UserError for files that cannot be read."""
    with opened(path) as file:
        kind = kind_of(file)
        return Header(
            stored_size(file),
            orientation_of(file, Image.Image.getexif),  # PNG's own unpacks the picture, for what may stand behind it
            kind,
            is_transparent(file, kind),
            getattr(file, "is_animated", False) and file.format != "MPO",  # there it's previews and maps of a camera
        )


def read_numbers(path: str | Place) -> np.ndarray:
    """(N,) float64: the numbers of all pixels and colours of a picture that is not of 8 bits, without those that are none."""
    with opened(path) as file:
        kind = kind_of(file)
        file.load()
        values = numbers(path, file, kind)
    return values[np.isfinite(values)]


def read_hidden(path: str | Place) -> tuple[float, int]:
    """How much of a picture is transparent, as a share, and how many levels of its fullest channel are hidden there."""
    with opened(path) as file:
        picture = with_alpha(file)
    mask = picture.getchannel("A").point([255] * 128 + [0] * 128)
    return np.asarray(mask).astype(bool).mean().item(), levels(picture.convert("RGB"), mask)


def levels(picture: Image.Image, mask: Image.Image | None = None) -> int:
    """How many of the 256 levels the fullest channel of an RGB picture has, where `mask` is not 0."""
    histogram = np.array(picture.histogram(mask)).reshape(3, 256)
    return int((histogram > 0).sum(1).max())


class SizeError(UserError):
    """The image has another size than its annotations say."""


def pillow(path: str | Place) -> Image.Image:
    """A file, also one in a zip file, opened by Pillow."""
    return Image.open(path.open() if isinstance(path, Entry) else path)


def check_file(path: str | Place) -> int:
    """Its bytes. Refuse what is no file with something in it: reading a pipe would wait for ever, and a device never end."""
    if isinstance(path, Entry):
        if path.size == 0:
            raise ValueError("it is empty")
        return path.size
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise ValueError("it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size == 0:
        raise ValueError("it is empty")
    return status.st_size


def check_pixels(path: str | Place, stored: tuple[int, int], size: tuple[int, int] | None, length: int) -> None:
    """Refuse to unpack a large picture that nobody announced, that the memory has no room for, or that is a bomb of so many
    bytes.
    """
    pixels = stored[0] * stored[1]
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


def in_a_line(path: str | Place) -> str:
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


def orientation_of(file: Image.Image, exif_of: Callable[[Image.Image], Image.Exif] = methodcaller("getexif")) -> int:
    """The EXIF orientation that is still to be applied, 1 where there is none."""
    try:
        orientation = exif_of(file).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not spoil the pixels
        return 1
    return orientation if orientation in UPRIGHT else 1


def fits_as_stored(stored: tuple[int, int], orientation: int, size: tuple[int, int]) -> bool:
    """Whether the picture as it is stored has that size, and the turned one has not."""
    return orientation >= 5 and stored == tuple(size) and size[0] != size[1]


def kind_of(file: Image.Image) -> str | None:
    """What kind of numbers a file has that is not of 8 bits, None for one that is. To be asked before it is loaded."""
    colour = file.tile and all(rawmode(tile) in OTHER_BYTE for tile in file.tile)
    return COLOUR if colour else GREY.get(file.mode)


def as_rgb(path: str | Place, file: Image.Image, kind: str | None, reading: Reading) -> Image.Image:
    """A loaded file of any mode to RGB, by the rules of `Reading`."""
    picture: Image.Image = file
    if kind is not None and reading.range is not None:
        picture = scaled(numbers(path, file, kind), *reading.range)
        if file.mode == "RGBA":
            picture.putalpha(file.getchannel("A"))
    elif kind in (SIXTEEN, INTEGERS):
        picture = scaled(np.asarray(file, dtype=np.float64), 0, 65535)
    elif kind == FLOATS:
        values = np.nan_to_num(np.asarray(file, dtype=np.float64))
        peak = values.max(initial=0.0)
        picture = scaled(values, 0, next((top for top in (1, 255) if peak <= top), 65535))
    if is_transparent(picture, kind):
        picture = with_alpha(picture)
        if reading.alpha == "white":
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def is_transparent(picture: Image.Image, kind: str | None) -> bool:
    """Whether it may be: by an alpha channel, or by a colour that stands for transparency, unless that is of 16 bits."""
    return picture.mode in ALPHA or (kind is None and "transparency" in picture.info)


def with_alpha(picture: Image.Image) -> Image.Image:
    """RGBA."""
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


def numbers(path: str | Place, file: Image.Image, kind: str) -> np.ndarray:
    """(H, W) or, of colours, (H, W, 3) float64: the numbers in a loaded file that is not of 8 bits, NaN where it says
    that it has none (GDAL's nodata).
    """
    values = np.asarray(file, dtype=np.float64)
    if kind == COLOUR:
        values = (values * 256 + lower_bytes(path))[..., :3]
    with suppress(TypeError, ValueError):
        values[values == float(getattr(file, "tag_v2", {}).get(NODATA, ""))] = np.nan  # a text, where there is one
    return values


def lower_bytes(path: str | Place) -> np.ndarray:
    """(H, W, 3 or 4): of the two bytes of each number the one that Pillow leaves out, had by calling the order of bytes the
    other one.
    """
    with opened(path) as file:
        file.tile = [tile._replace(args=with_rawmode(tile.args, OTHER_BYTE[rawmode(tile)])) for tile in file.tile]
        return np.asarray(file)


def rawmode(tile: tuple) -> str | None:
    """How the numbers lie in a file, in Pillow's words."""
    args = getattr(tile, "args", None)  # before Pillow 11 tiles had no names
    return args[0] if isinstance(args, tuple) and args else args


def with_rawmode(args: str | tuple, mode: str) -> str | tuple:
    return mode if isinstance(args, str) else (mode, *args[1:])


def scaled(values: np.ndarray, low: float, high: float) -> Image.Image:
    """L or RGB: `low` and what is below or missing is 0, `high` and what is above is 255."""
    with np.errstate(invalid="ignore"):
        levels = np.nan_to_num((values - low) * 255 / (high - low), nan=0, posinf=255, neginf=0)
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))


def size_of(place: Place, exif: str = "apply") -> tuple[int, int] | str:
    """Width and height that `read_image` gives a picture, from the file's first bytes, or why it cannot be read."""
    try:
        header = read_header(place)
    except UserError as error:
        return "; ".join(error.lines)
    return header.stored[::-1] if exif == "apply" and header.orientation >= 5 else header.stored


def is_picture(name: str) -> bool:
    """Whether a file looks like an image by its name."""
    return os.path.splitext(name)[1].lower() in suffixes()


@cache
def suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the formats that are read here; some others are only written."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
