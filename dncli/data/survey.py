"""What the pictures of a dataset are like, where a detector may see something else than people take them to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from dndetr.console import UserError
from dndetr.data.coco import ImageRecord
from dndetr.data.images import (
    Header,
    Reading,
    fits_as_stored,
    levels,
    read_header,
    read_hidden,
    read_image,
    read_numbers,
)
from dndetr.data.store import Place

T = TypeVar("T")

LOOKED = 1000  # images of which a survey reads the headers
UNPACKED, PIXELS, LEAST = 200, 200_000_000, 10  # images of a kind that it unpacks: at most, for so many pixels, at least
SAMPLED = 4_000_000  # pixels of an image that its range is taken from
FEW = 16  # grey levels that a picture should have
HIDDEN = 0.01  # share of a picture that is transparent, from which it is looked at what is hidden there
OUTLIERS, ODD = 0.01, 1  # percent of a picture's pixels, and of the pictures, at either end that do not count for the range


class Glance(NamedTuple):
    """One picture."""

    header: Header
    fitting: bool  # its annotations have the size of the picture as stored, not that of the turned one
    levels: int | None = None  # that the detector sees in its fullest channel, None where nobody looked
    hidden: bool | None = None  # whether FEW levels or more are hidden where it is transparent


@dataclass(frozen=True)
class Survey:
    """The pictures of a split that were looked at, and how they are read."""

    images: int  # of the split
    glances: tuple[Glance, ...]
    reading: Reading

    def lines(self) -> list[str]:
        """What is to be known of them, a sentence each; none of pictures of 8 bits that lie as a viewer shows them."""
        turned = [glance for glance in self.glances if glance.header.orientation > 1]
        deep = [glance for glance in self.glances if glance.header.kind]
        several = [glance for glance in self.glances if glance.header.several]
        seen = [glance for glance in self.glances if glance.levels is not None]
        few = [glance for glance in seen if glance.levels < FEW]
        clear = [glance for glance in self.glances if glance.hidden is not None]
        hidden = [glance for glance in clear if glance.hidden]
        found = []
        if turned:
            found.append(f"EXIF rotation in {self.share(turned)}, {self.rotation(turned)}")
        if deep:
            kinds = ", ".join(sorted({glance.header.kind for glance in deep}))
            found.append(f"not of 8 bits ({kinds}): {self.share(deep)}; {self.scale()} (data.range)")
        if few:
            mend = "; data.range=MIN,MAX says which numbers matter" if deep else ""
            found.append(f"WARNING: the detector sees fewer than {FEW} grey levels in {self.share(few, seen)}{mend}")
        if hidden:
            how = "seen as white; data.alpha=drop shows it" if self.reading.alpha == "white" else "shown (data.alpha=drop)"
            found.append(f"transparent pixels hold a picture in {len(hidden)} of {len(clear)} images with transparency, {how}")
        if several:
            found.append(f"several pages or frames in {self.share(several)}; the first is read")
        return found

    def rotation(self, turned: Sequence[Glance]) -> str:
        if self.reading.exif == "ignore":
            return "not applied: boxes are taken to be of the pictures as stored (data.exif=ignore)"
        fitting = sum(glance.fitting for glance in turned)
        but = f" but to {fitting} whose annotations give the size as stored" if fitting else ""
        return f"applied{but}: boxes are taken to be of the pictures so turned (data.exif=ignore: as stored)"

    def scale(self) -> str:
        if self.reading.range is None:
            return "integers are seen from 0 to 65535, floats from 0 to 1, 255 or 65535"
        return " to ".join(map(as_text, self.reading.range)) + " is seen as 0 to 255"

    def share(self, some: Sequence[Glance], of: Sequence[Glance] | None = None) -> str:
        looked = len(self.glances if of is None else of)
        return f"{len(some)} of {looked} images{'' if looked == self.images else ' looked at'}"


def survey(images: Sequence[ImageRecord], reading: Reading, *, settle: bool = True) -> Survey:
    """Look at up to LOOKED images, evenly taken, and unpack some of those that are not of 8 bits or may be transparent.

    With `settle` a range that `reading` leaves open becomes the `spread` of these images. What cannot be read is passed over.
    """
    found = [(image, header) for image in evenly(images, LOOKED) if (header := attempt(read_header, image.path))]
    deep = affordable([(image, header) for image, header in found if header.kind])
    if settle and reading.range is None:
        reading = replace(reading, range=spread(image.path for image in deep))
    clear = affordable([(image, header) for image, header in found if header.alpha])
    unpacked = {image.id for image in (*deep, *clear)}
    glances = []
    for image, header in found:
        size = (image.width, image.height)
        picture = attempt(read_image, image.path, size, reading) if image.id in unpacked else None
        glances.append(glance(image.path, size, header, picture))
    return Survey(len(images), tuple(glances), reading)


def glance(path: Place, size: tuple[int, int], header: Header, picture: Image.Image | None) -> Glance:
    """One image whose annotations give that size; `picture` is what the detector sees of it, where that was read."""
    fitting = fits_as_stored(header.stored, header.orientation, size)
    if picture is None:
        return Glance(header, fitting)
    share, hidden = (header.alpha and attempt(read_hidden, path)) or (0, 0)
    return Glance(header, fitting, levels(picture), share >= HIDDEN and hidden >= FEW if header.alpha else None)


def spread(paths: Iterable[Place]) -> tuple[float, float] | None:
    """MIN and MAX of the numbers in pictures that are not of 8 bits; None where there are none, or one only.

    Of a picture the least and the greatest ten-thousandth of the pixels are left out, so that dead pixels do not count but
    small objects do; then of the pictures a hundredth at either end.
    """
    ends = []
    for path in paths:
        values = attempt(read_numbers, path)
        if values is not None and len(values):
            values = values[:: 1 + len(values) // SAMPLED]
            ends.append((percentile(values, OUTLIERS, "lower"), percentile(values, 100 - OUTLIERS, "higher")))
    if not ends:
        return None
    lows, highs = zip(*ends, strict=True)
    low, high = percentile(lows, ODD, "lower"), percentile(highs, 100 - ODD, "higher")
    return (float(as_text(low)), float(as_text(high))) if low < high else None


def percentile(values: Sequence[float], percent: float, method: str) -> float:
    return float(np.percentile(values, percent, method=method))


def as_text(number: float) -> str:
    """As it stands in settings: whole numbers whole, others to the precision of a float32."""
    return f"{number:.10g}"


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of them, from the first on, at equal distances."""
    return items[:: max(1, -(-len(items) // most))]


def affordable(found: Sequence[tuple[ImageRecord, Header]]) -> Sequence[ImageRecord]:
    """So many of the images that unpacking them takes seconds."""
    largest = max((header.stored[0] * header.stored[1] for _, header in found), default=1)
    return evenly([image for image, _ in found], min(UNPACKED, max(LEAST, PIXELS // largest)))


def attempt(read: Callable[..., T], *arguments: Any) -> T | None:
    """None for a file that cannot be read: who reads all of them says so."""
    try:
        return read(*arguments)
    except UserError:
        return None
