"""Class names in any script are drawn, or said not to be."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from dndetr import fonts
from dndetr.draw import Mark, draw_marks
from dndetr.fonts import best_font, font_files, lettering, undrawable

BOX = (100, 200, 400, 400)


@pytest.fixture
def no_other_font(monkeypatch):
    """A system with no font but matplotlib's."""
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    best_font.cache_clear()
    yield
    best_font.cache_clear()


def drawn(text: str) -> np.ndarray:
    return np.asarray(draw_marks(Image.new("RGB", (500, 500)), [Mark(BOX, 0, text)]))


@pytest.mark.parametrize("text", ["Straße", "кошка", "γάτα", "قطة", "šuo → é"])
def test_scripts_beyond_ascii_are_drawn(text, no_other_font):
    shown, font = lettering(text, 20)
    assert shown == text and undrawable([text]) == ""
    box = font.getmask(chr(0x0378)).getbbox(), bytes(font.getmask(chr(0x0378)))  # what stands for a character that it lacks
    for letter in set(text) - {" "}:
        assert (font.getmask(letter).getbbox(), bytes(font.getmask(letter))) != box


def test_ascii_is_drawn_in_the_font_of_old():
    text, font = lettering("person 0.87", 20)
    assert text == "person 0.87" and font.getname() == ImageFont.load_default(size=20).getname()


def test_what_no_font_has_is_drawn_as_an_escape_and_told_in_a_line(no_other_font):
    assert lettering("猫 0.87", 20)[0] == r"\u732b 0.87"
    assert undrawable(["cat", "猫", "кошка", "犬"]) == (
        r"no font here has 犬猫: such characters are drawn as escapes (\u72ac); "
        "install a font for them, for instance Noto Sans CJK"
    )
    assert (drawn("猫") == drawn(r"\u732b")).mean() > 0.99 and (drawn("猫") != drawn("犬")).any()
    many = undrawable([chr(code) for code in range(0x4E00, 0x4E00 + 25)])
    assert "and 5 more" in many


def test_a_font_of_the_system_is_taken_where_it_has_more(monkeypatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    files = [str(tmp_path / "broken.ttf"), "/fonts/cjk.ttf"]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [*files, "/fonts/LastResort.otf"])
    assert not any("LastResort" in path for path in font_files())
    original = fonts.lacking
    monkeypatch.setattr(fonts, "lacking", lambda path, wanted: frozenset() if "cjk" in path else original(path, wanted))
    best_font.cache_clear()
    assert best_font(frozenset("猫")) == ("/fonts/cjk.ttf", frozenset())
    assert best_font(frozenset("ж"))[0].endswith("DejaVuSans.ttf")
    best_font.cache_clear()


def test_what_cannot_be_seen_needs_no_font(no_other_font):
    assert undrawable(["a\u200db", "a\u00a0b", "a\ufeff"]) == ""
