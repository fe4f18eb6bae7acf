"""Pictures of detections: boxes with names and scores, large enough to be read on tiny images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dndetr.fonts import lettering

SMALLEST = 400  # pixels of the shorter side of a drawn picture
LARGEST = 4000  # pixels beyond which no side is enlarged
MOST = 32_000  # pixels of a drawn side: two pictures side by side fit into the 65535 of a JPEG
HEADING = 24  # pixels of the line of text above a picture


class Mark(NamedTuple):
    """One box to draw."""

    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the image
    label: int  # chooses the colour
    text: str  # nothing is written where it is empty
    color: tuple[int, int, int] | None = None  # instead of the label's
    thick: int = 1  # times the usual line


def draw_marks(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """A copy of the image with the marks on it, the last one on top: enlarged if tiny, shrunk if no JPEG could hold it."""
    scale = max(1, min(-(-SMALLEST // min(image.size)), LARGEST // max(image.size)))
    scale = min(scale, MOST / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    shorter = min(picture.size)
    line, height = max(2, shorter // 250), max(13, shorter // 40)
    for mark in marks:
        x1, y1, x2, y2 = (round(v * scale) for v in mark.box)
        color = mark.color or color_of(mark.label)
        canvas.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=color, width=mark.thick * line)
        if mark.text:
            write_label(canvas, picture.size, (x1, y1), mark.text, color, height)
    return picture


def write_label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[int, int],
    text: str,
    color: tuple[int, int, int],
    height: int,
) -> None:
    """Text of that height on its colour, above the box's upper left corner, or inside where the picture ends."""
    text, font = lettering(text, height)
    _, _, width, height = canvas.textbbox((0, 0), text, font=font)
    x = min(max(corner[0], 0), max(size[0] - width - 4, 0))
    y = corner[1] - height - 4
    y = y if y >= 0 else min(max(corner[1], 0), max(size[1] - height - 4, 0))
    canvas.rectangle((x, y, x + width + 4, y + height + 4), fill=color)
    dark = sum(c * w for c, w in zip(color, (0.299, 0.587, 0.114), strict=True)) < 140
    canvas.text((x + 2, y + 1), text, fill="white" if dark else "black", font=font)


def side_by_side(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one height in a row, each under its heading."""
    gap = 8
    width = sum(p.width for _, p in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, HEADING + max(p.height for _, p in pictures)), "white")
    canvas, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(size=15), 0
    for heading, picture in pictures:
        canvas.text((x + 4, 3), heading, fill="black", font=font)
        sheet.paste(picture, (x, HEADING))
        x += picture.width + gap
    return sheet


def color_of(label: int) -> tuple[int, int, int]:
    """A colour for a class: neighbours in number lie far apart in hue."""
    hue = label * 0.61803 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
