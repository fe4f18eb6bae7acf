import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, TiffImagePlugin

from dndetr.console import UserError
from dndetr.data.images import Reading, SizeError, read_header, read_image, read_numbers


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


def turned(folder, orientation: int, name: str | None = None, **options):
    """A picture of 6 x 4 with a white upper left corner, as stored, and this EXIF orientation."""
    picture = Image.new("RGB", (60, 40))
    picture.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(folder, picture, name or f"{orientation}.jpg", exif=exif, **(options or {"quality": 95}))


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


KINDS = {
    "a.jpg": {"quality": 95},
    "a.png": {},
    "a.webp": {"lossless": True},
    "a.tif": {},
    "b.tif": {"compression": "tiff_lzw"},
    "a.avif": {"quality": 95},
}


def corners(picture) -> dict[tuple[int, int], bool]:
    """Which corners are bright."""
    shown = np.asarray(picture).min(-1)
    return {corner: bool(shown[corner] > 200) for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1))}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotation_is_applied_or_not_in_every_format(tmp_path, name, orientation):
    """As stored where the annotations or the run say so: the white corner is where the file has it; else where viewers do."""
    path = turned(tmp_path, orientation, name=name, **KINDS[name])
    where = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    upright = (60, 40) if orientation < 5 else (40, 60)
    shown, ignored = read_image(path, upright), read_image(path, reading=Reading(exif="ignore"))
    assert shown.size == upright and [corner for corner, white in corners(shown).items() if white] == [where]
    assert ignored.size == (60, 40) and corners(ignored)[0, 0] and sum(corners(ignored).values()) == 1
    if orientation >= 5:
        assert corners(read_image(path, (60, 40))) == corners(ignored)
        with pytest.raises(SizeError, match="is 60 x 40, its annotations say 40 x 60;"):
            read_image(path, upright, Reading(exif="ignore"))


def grey(path, **reading) -> np.ndarray:
    shown = np.asarray(read_image(path, reading=Reading(**reading)))
    assert (shown == shown[..., :1]).all()
    return shown[..., 0]


def tiff16(values: np.ndarray, order: str, samples: int = 1, packed: bool = False) -> bytes:
    """A TIFF of 16 bits in that order of bytes, of one grey channel or of several that lie side by side."""
    height, width = values.shape[:2]
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if packed else pixels
    entries = [(256, width), (257, height), (258, 16), (259, 8 if packed else 1), (262, 1 if samples == 1 else 2)]
    entries += [(273, 0), (277, samples), (278, height), (279, len(pixels))]
    behind = 8 + 2 + 12 * len(entries) + 4  # where the values lie that an entry has no room for
    bits = struct.pack(f"{order}{samples}H", *[16] * samples)
    found = {273: behind + len(bits)}
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    for tag, value in entries:
        if tag == 258 and samples > 2:
            data += struct.pack(f"{order}HHII", tag, 3, samples, behind)
        else:
            data += struct.pack(f"{order}HHII", tag, 4, 1, found.get(tag, value))
    return data + struct.pack(f"{order}I", 0) + bits + pixels


def png16(values: np.ndarray, key: bytes | None = None) -> bytes:
    """A PNG of 16 bits in 3 or 4 channels, which Pillow writes none of; `key` is the colour that means transparent."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    transparent = [(b"tRNS", key)] if key else []
    chunks = [(b"IHDR", header), *transparent, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


STEPS = np.arange(0, 256).reshape(16, 16)  # what is seen of the numbers below


@pytest.mark.parametrize("order", "<>")
def test_numbers_of_16_bits_are_seen_over_their_range(tmp_path, order):
    """12 bits in 16, of which a reader of 16 bits sees 16 levels; in both orders of bytes."""
    (tmp_path / "a.tif").write_bytes(tiff16(STEPS * 16 + 7, order))
    assert Image.open(tmp_path / "a.tif").mode == {"<": "I;16", ">": "I;16B"}[order]
    np.testing.assert_array_equal(grey(tmp_path / "a.tif", range=(7, 7 + 255 * 16)), STEPS)
    assert len(np.unique(grey(tmp_path / "a.tif"))) <= 17


def test_integers_and_floats_are_seen_over_their_range(tmp_path):
    kinds = {
        "I": ((STEPS + 60).astype(np.int32), (60, 315)),
        "I;16": ((STEPS * 2 + 51462).astype(np.uint16), (51462, 51972)),
        "F": ((STEPS / 8 - 30).astype(np.float32), (-30, 255 / 8 - 30)),  # decibels
    }
    for mode, (numbers, span) in kinds.items():
        path = saved(tmp_path, Image.fromarray(numbers), "a.tif")
        assert Image.open(path).mode == mode
        np.testing.assert_array_equal(grey(path, range=span), STEPS)


def test_what_lies_outside_of_the_range_is_black_or_white(tmp_path):
    numbers = np.array([[-5.0, 300.5, np.nan, -np.inf, np.inf, 75.0]], np.float32)
    path = saved(tmp_path, Image.fromarray(numbers), "a.tif")
    assert grey(path, range=(50, 100)).tolist() == [[0, 255, 0, 0, 255, 128]]


def test_numbers_that_gdal_calls_none_are_black(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113] = "500"
    path = saved(tmp_path, Image.fromarray(np.array([[500, 0, 10]], np.float32)), "a.tif", tiffinfo=tags)
    assert grey(path, range=(0, 10)).tolist() == [[0, 0, 255]]
    assert sorted(read_numbers(path)) == [0, 10]


@pytest.mark.parametrize("name", ["rgb.png", "rgba.png", "little.tif", "big.tif", "little-packed.tif", "big-packed.tif"])
def test_colours_of_16_bits_are_seen_over_their_range(tmp_path, name):
    """Pillow hands out the upper byte, which of 12 bits is 0 to 15."""
    seen = np.stack([STEPS, STEPS[::-1], STEPS.T], -1)
    numbers = np.dstack([seen * 16 + 3, np.full((16, 16), 65535)])[..., : 4 if name == "rgba.png" else 3]
    order = "<" if name.startswith("little") else ">"
    data = png16(numbers) if name.endswith(".png") else tiff16(numbers, order, samples=3, packed="packed" in name)
    (tmp_path / name).write_bytes(data)
    shown = read_image(tmp_path / name, reading=Reading(range=(3, 255 * 16 + 3)))
    np.testing.assert_array_equal(np.asarray(shown), seen)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name)), numbers[..., :3] >> 8)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK"])
def test_no_range_touches_a_picture_of_8_bits(tmp_path, mode):
    path = saved(tmp_path, Image.fromarray(STEPS.astype(np.uint8)).convert(mode), "a.tif")
    np.testing.assert_array_equal(np.asarray(read_image(path, reading=Reading(range=(100, 110)))), values(path))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P", "L", "RGB"])
def test_what_is_transparent_is_white_or_what_it_hides(tmp_path, mode):
    """By an alpha channel, or by a colour that is called transparent."""
    options = {"P": {"transparency": 5}, "L": {"transparency": 5}, "RGB": {"transparency": (5, 5, 5)}}.get(mode, {})
    picture = Image.fromarray(np.full((4, 4), 5, np.uint8)).convert(mode if options else "RGB" if mode == "RGBA" else "L")
    if mode == "P":
        picture.putpalette([7] * 768)
    if not options:
        picture = picture.convert(mode)
        picture.putalpha(0)
    path = saved(tmp_path, picture, "a.tif" if mode == "PA" else "a.png", **options)
    assert (grey(path) == 255).all()
    assert (grey(path, alpha="drop") == (7 if mode == "P" else 5)).all()


def test_a_near_infrared_channel_in_the_place_of_alpha_can_be_left_out(tmp_path):
    colours = np.dstack([STEPS, STEPS, STEPS, STEPS[::-1]]).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(colours), "a.tif")
    np.testing.assert_array_equal(grey(path, alpha="drop"), STEPS)
    assert grey(path)[15].min() > 238  # by the "alpha" of the last row nearly nothing is to be seen


@pytest.mark.parametrize("span", [None, (0, 65535)])
def test_a_transparent_colour_of_16_bits_is_left_out_of_account(tmp_path, span):
    numbers = np.dstack([STEPS] * 3) * 257
    (tmp_path / "a.png").write_bytes(png16(numbers, key=struct.pack(">HHH", 257, 257, 257)))
    np.testing.assert_array_equal(grey(tmp_path / "a.png", range=span), STEPS)
    assert not read_header(tmp_path / "a.png").alpha


@pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="Pillow before 13 does not open grey with its alpha in it"
)
def test_grey_that_is_multiplied_by_its_alpha_is_read(tmp_path):
    path = saved(tmp_path, Image.merge("LA", [Image.new("L", (4, 4), 60), Image.new("L", (4, 4), 120)]), "a.tif")
    extra = struct.pack("<HHIH", 338, 3, 1, 2)  # the tag that says what the second channel is
    path.write_bytes(path.read_bytes().replace(extra, struct.pack("<HHIH", 338, 3, 1, 1)))
    assert Image.open(path).mode == "La"
    assert abs(int(grey(path, alpha="drop")[0, 0]) - 60 * 255 // 120) <= 1
    assert abs(int(grey(path)[0, 0]) - (60 + 255 - 120)) <= 1
