"""Fonts by what they can write: the names of classes are in any script."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

from PIL import ImageFont

SHOWN = 20  # characters that a message lists


def lettering(text: str, size: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text as it can be written here, and a font that has its characters: Pillow's own for ASCII, else DejaVu Sans, which
    comes with matplotlib, or one of the system's. What no font has is written as an escape, such as \\u732b.
    """
    wanted = beyond_ascii(text)
    if not wanted:
        return text, opened("", size)
    path, missing = best_font(wanted)
    return "".join(escaped(letter) if letter in missing else letter for letter in text), opened(path, size)


def undrawable(names: Iterable[str]) -> str:
    """One line about the characters of these names that `lettering` cannot write; empty where there are none."""
    missing = sorted(set().union(*(best_font(beyond_ascii(name))[1] for name in names)))
    if not missing:
        return ""
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return (
        f"no font here has {''.join(missing[:SHOWN])}{more}: such characters are drawn as escapes ({escaped(missing[0])}); "
        "install a font for them, for instance Noto Sans CJK"
    )


def beyond_ascii(text: str) -> frozenset[str]:
    """The characters that a font must have. Spaces and marks of control are nothing to be seen."""
    return frozenset(letter for letter in text if not letter.isascii() and unicodedata.category(letter)[0] not in "CZ")


@lru_cache(maxsize=4096)
def best_font(wanted: frozenset[str]) -> tuple[str, frozenset[str]]:
    """The first font that has all of these characters, or lacks the fewest; and those that it lacks."""
    best = None
    for path in font_files() if wanted else ():
        missing = lacking(path, wanted)
        if best is None or len(missing) < len(best[1]):
            best = path, missing
        if not missing:
            break
    return best or ("", wanted)


def font_files() -> Iterator[str]:
    import matplotlib

    yield os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    from matplotlib.font_manager import findSystemFonts

    # Apple's font of last resort has a box for every character.
    yield from sorted(path for path in findSystemFonts() if "lastresort" not in path.lower())


def lacking(path: str, wanted: frozenset[str]) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):  # not a font, or a broken one
        return wanted
    if not font.scalable:  # pictures of one size, as of emoji
        return wanted
    return frozenset(letter for letter in wanted if not font.get_char_index(ord(letter)))


@lru_cache(maxsize=64)
def opened(path: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size=size)


def escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
