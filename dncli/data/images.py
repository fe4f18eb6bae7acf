"""Image files of any kind to RGB pictures of 8 bits, turned as a viewer shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dncli.console import UserError

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture in `path` as RGB.

    Its EXIF rotation is applied, unless `size` (width and height by the annotations, whose boxes count on them) fits only
    the picture as it is stored. Raises UserError for files that cannot be read, and where neither has that size.
    """
    try:
        with Image.open(path) as file:
            file.load()
            stored = file.size
            picture = as_rgb(rotated(file, size))
    except Exception as error:  # decoders raise whatever they like
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read as an image ({error})"
        raise UserError(f"{path}: {what}; mend or remove it, and its annotations") from error
    if size is not None and picture.size != tuple(size):
        raise SizeError(
            f"{path}: the image is {picture.size[0]} x {picture.size[1]}, its annotations say {size[0]} x {size[1]}"
            + ("" if picture.size == stored else f" (stored as {stored[0]} x {stored[1]})")
            + "; correct width, height and boxes there"
        )
    return picture


class SizeError(UserError):
    """The image has another size than its annotations say."""


def rotated(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """`picture` turned by its EXIF orientation, unless only the unturned one has that size."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block does not spoil the pixels
        return picture
    swaps = orientation in (5, 6, 7, 8)
    if orientation == 1 or (swaps and size is not None and picture.size == tuple(size) and size[0] != size[1]):
        return picture
    return ImageOps.exif_transpose(picture)


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
