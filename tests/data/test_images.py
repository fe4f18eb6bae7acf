import numpy as np
import PIL
import pytest
from PIL import Image

from dndetr.console import UserError
from dndetr.data.images import SizeError, read_image


def saved(folder, picture, name, **options):
    picture.save(folder / name, **options)
    return folder / name


def ramp16() -> np.ndarray:
    return np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)


def values(path) -> np.ndarray:
    picture = read_image(path)
    assert picture.mode == "RGB"
    return np.asarray(picture)


unreadable = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="Pillow before 13 does not read the YCbCr TIFFs that it writes"
)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", pytest.param("YCbCr", marks=unreadable), "CMYK"])
def test_modes_keep_their_colours(tmp_path, mode):
    picture = Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode)
    path = saved(tmp_path, picture, "a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    assert Image.open(path).mode == mode
    assert (values(path) >= 254).all() and values(path).shape == (4, 6, 3)


def test_cmyk_jpeg(tmp_path):
    red = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "red.jpg", quality=95)
    assert np.abs(values(red).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(tmp_path, mode):
    if mode == "P":
        path = saved(tmp_path, Image.new("P", (4, 4), 0), "a.png", transparency=0)
    else:
        path = saved(tmp_path, Image.new(mode, (4, 4), (0,) * len(mode)), "a.png")
    assert (values(path) == 255).all()


def test_16_bits_are_scaled(tmp_path):
    expected = np.round(ramp16() / 257)
    png = saved(tmp_path, Image.fromarray(ramp16()), "a.png")
    tif = saved(tmp_path, Image.fromarray(ramp16().astype(np.int32)), "b.tif")
    assert Image.open(tif).mode == "I"
    for path in (png, tif):
        np.testing.assert_array_equal(values(path)[..., 0], expected)


@pytest.mark.parametrize("scale", [1 / 65535, 1 / 257, 1])
def test_floats_of_any_usual_range(tmp_path, scale):
    path = saved(tmp_path, Image.fromarray((ramp16() * scale).astype(np.float32)), "a.tif")
    np.testing.assert_allclose(values(path)[..., 1], ramp16() / 257, atol=0.51)


def turned(folder, orientation: int):
    """A picture of 6 x 4 with a white upper left corner, as stored, and this EXIF orientation."""
    picture = Image.new("RGB", (60, 40))
    picture.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(folder, picture, f"{orientation}.jpg", exif=exif, quality=95)


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_rotation(tmp_path, orientation, corner):
    shown = values(turned(tmp_path, orientation))
    assert shown.shape[:2] == ((60, 40) if orientation in (6, 8) else (40, 60))
    assert shown[corner].min() > 240
    others = {(0, 0), (0, -1), (-1, 0), (-1, -1)} - {corner}
    assert all(shown[other].max() < 15 for other in others)


def test_the_record_decides_about_the_rotation(tmp_path):
    path = turned(tmp_path, 6)
    assert read_image(path, size=(40, 60)).size == (40, 60)
    stored = read_image(path, size=(60, 40))
    assert stored.size == (60, 40) and stored.getpixel((0, 0))[0] > 240
    with pytest.raises(SizeError, match=r"is 40 x 60, its annotations say 50 x 60 \(stored as 60 x 40\)"):
        read_image(path, size=(50, 60))


def test_wrong_size(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (6, 4)), "a.png")
    with pytest.raises(SizeError, match="a.png: the image is 6 x 4, its annotations say 4 x 6;"):
        read_image(path, size=(4, 6))


def test_unreadable(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg"):
        path = saved(tmp_path, Image.fromarray(noise), name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=f"{path}: cannot be read as an image"):
            read_image(path)
    (tmp_path / "b.png").write_text("not an image")
    for name in ("b.png", "."):
        with pytest.raises(UserError, match="cannot be read as an image"):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="c.png: no such file"):
        read_image(tmp_path / "c.png")
