"""Pictures that are spoilt, or not where an annotation file says."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
from PIL import Image

from tests.data.broken.kinds import BLACK, BLUE, HEIGHT, IMAGE, RED, WHITE, WIDTH, Colours, refused, sound

# Where a file name leads.


@refused(IMAGE, "1.png is a folder; file_name must name a file")
def picture_is_a_folder(files):
    files.picture.unlink()
    files.picture.mkdir()


@refused(IMAGE, "1.png leads out of the data root, to ")
def link_out_of_the_root(files):
    files.picture.rename(files.outside / "1.png")
    files.picture.symlink_to(files.outside / "1.png")


@refused(IMAGE, "sub/1.png leads out of the data root, to ")
def folder_of_a_link_out_of_the_root(files):
    files.picture.rename(files.outside / "1.png")
    (files.folder / "sub").symlink_to(files.outside)
    files.image["file_name"] = "sub/1.png"


@refused(IMAGE, "a/b/1.png leads out of the data root, to ")
def folder_below_a_link_out_of_the_root(files):
    (files.outside / "b").mkdir()
    files.picture.rename(files.outside / "b" / "1.png")
    (files.folder / "a").symlink_to(files.outside)
    files.image["file_name"] = "a/b/1.png"


@refused(IMAGE, "1.png is a link that leads nowhere")
def link_to_nothing(files):
    files.picture.unlink()
    files.picture.symlink_to("gone.png")


@refused(IMAGE, "1.png is a link that leads nowhere")
def link_to_itself(files):
    files.picture.unlink()
    files.picture.symlink_to("1.png")


@refused(IMAGE, "1.png is not a regular file")
def link_to_a_device(files):
    files.picture.unlink()
    files.picture.symlink_to("/dev/zero")


@sound()
def link_within_the_root(files):
    (files.root / "pool").mkdir(exist_ok=True)
    files.picture.rename(files.root / "pool" / f"{files.split}.png")
    files.picture.symlink_to(f"../pool/{files.split}.png")


@sound()
def image_folder_is_a_link(files):
    files.folder.rename(files.outside / "pictures")
    files.folder.symlink_to(files.outside / "pictures")
    (files.folder / "0.png").rename(files.folder / "real.png")
    (files.folder / "0.png").symlink_to("real.png")  # stays in the folder


@sound()
def picture_in_a_subfolder(files):
    files.named("a/b/1.png")


@sound()
def name_in_unicode(files):
    files.named("Übung 写真 🙂.png")


@sound()
def name_like_a_hidden_way_up(files):
    files.named("..1..png")


# Pictures.


@refused(IMAGE, "1.png: cannot be read as an image (it is empty)", picture=True)
def picture_of_no_bytes(files):
    files.picture.write_bytes(b"")


@refused(IMAGE, "cannot be read as an image", "truncated", picture=True)
def jpeg_cut_off(files):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    files.draw(Image.fromarray(noise), "1.jpg", {}, quality=95)
    files.picture.write_bytes(files.picture.read_bytes()[:1500])


@refused(IMAGE, "cannot be read as an image", picture=True)
def png_cut_off(files):
    files.picture.write_bytes(files.picture.read_bytes()[:-400])


@refused(IMAGE, "cannot be read as an image", picture=True)
def png_of_a_header_only(files):
    files.picture.write_bytes(files.picture.read_bytes()[:40])


@refused(IMAGE, "1.jpg: cannot be read as an image (it has no image format that is known here)", picture=True)
def web_page_named_jpg(files):
    files.named("1.jpg").write_text("<!DOCTYPE html><title>404 Not Found</title>")


@refused(IMAGE, "1.png is not a regular file")
def picture_is_a_pipe(files):
    files.picture.unlink()
    os.mkfifo(files.picture)


@refused(IMAGE, "the image is 20000 x 20000 in", "decompression bomb", picture=True)
def bomb(files):
    files.picture.write_bytes(png(20_000, 20_000, zlib.compress(bytes(2501 * 20_000), 9)))
    files.image.update({"width": 20_000, "height": 20_000})


@refused(IMAGE, "the image is 20000 x 20000, its annotations say 40 x 32")
def bomb_in_a_picture_of_a_known_size(files):
    files.picture.write_bytes(png(20_000, 20_000, zlib.compress(bytes(2501 * 20_000), 9)))


@refused(IMAGE, "is 60000 x 60000, which is too large to be read at once", picture=True)
def picture_too_large_for_any_memory(files):
    files.picture.write_bytes(png(60_000, 60_000, bytes(1000)))
    files.image.update({"width": 60_000, "height": 60_000})


@refused(IMAGE, "the image is 32 x 40, its annotations say 40 x 32")
def picture_turned(files):
    Image.new("RGB", (HEIGHT, WIDTH)).save(files.picture)


@sound(picture=True)
def png_named_jpg(files):
    files.draw(halves(), "1.jpg", HALVES, format="png")


@sound(picture=True)
def jpeg_named_png(files):
    files.draw(halves(), "1.png", HALVES, format="jpeg", quality=95, subsampling=0)


@sound(picture=True)
def jpeg_of_four_inks(files):
    files.draw(halves().convert("CMYK"), "1.jpg", HALVES, quality=95)


@sound(picture=True)
def tiff_of_four_inks(files):
    files.draw(halves().convert("CMYK"), "1.tif", HALVES)


@sound(picture=True)
def png_of_16_bits(files):
    steps = np.zeros((HEIGHT, WIDTH), np.uint16)
    steps[:, 20:] = 128 * 257
    files.draw(Image.fromarray(steps), "1.png", {(5, 5): BLACK, (30, 5): (128, 128, 128)})


@sound(picture=True)
def tiff_of_floats(files):
    steps = np.zeros((HEIGHT, WIDTH), np.float32)
    steps[:, 20:] = 1
    files.draw(Image.fromarray(steps), "1.tif", {(5, 5): BLACK, (30, 5): WHITE})


@sound(picture=True)
def picture_of_one_bit(files):
    files.draw(halves().convert("L").point(lambda v: 255 * (v > 50)).convert("1"), "1.png", {(5, 5): WHITE, (30, 5): BLACK})


@sound(picture=True)
def jpeg_turned_by_exif(files):
    """Stored lying on its side; a viewer shows it as the annotations count it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files.draw(halves().transpose(Image.Transpose.ROTATE_90), "1.jpg", HALVES, exif=exif, quality=95, subsampling=0)


@sound(picture=True)
def tiff_turned_by_exif(files):
    exif = Image.Exif()
    exif[0x0112] = 6
    files.draw(halves().transpose(Image.Transpose.ROTATE_90), "1.tif", HALVES, exif=exif)


@sound(picture=True)
def jpeg_with_a_broken_exif_block(files):
    files.draw(halves(), "1.jpg", HALVES, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", quality=95, subsampling=0)


@sound(picture=True)
def jpeg_with_an_orientation_of_99(files):
    exif = Image.Exif()
    exif[0x0112] = 99
    files.draw(halves(), "1.jpg", HALVES, exif=exif, quality=95, subsampling=0)


@sound(picture=True)
def palette_with_a_transparent_colour(files):
    files.draw(halves().convert("P"), "1.png", {(5, 5): RED, (30, 5): WHITE}, transparency=palette_index(30))


@sound(picture=True)
def palette_with_transparency_a_colour(files):
    alpha = bytearray(b"\xff" * 256)
    alpha[palette_index(30)] = 0
    files.draw(halves().convert("P"), "1.png", {(5, 5): RED, (30, 5): WHITE}, transparency=bytes(alpha))


@sound(picture=True)
def picture_with_an_alpha_channel(files):
    picture = halves().convert("RGBA")
    picture.paste((0, 0, 0, 0), (20, 0, WIDTH, HEIGHT))
    files.draw(picture, "1.png", {(5, 5): RED, (30, 5): WHITE})


@sound(picture=True)
def gif_with_many_frames(files):
    others = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("green", "white")]
    files.draw(halves(), "1.gif", HALVES, save_all=True, append_images=others)


@sound(picture=True)
def picture_of_one_pixel(files):
    files.draw(Image.new("RGB", (1, 1), RED), "1.png", {(0, 0): RED})
    files.image.update({"width": 1, "height": 1})
    files.item.update({"bbox": [0, 0, 1, 1], "area": 1})


@sound(picture=True)
def picture_of_one_row(files):
    files.draw(Image.new("RGB", (70_000, 1), BLUE), "1.png", {(0, 0): BLUE, (69_999, 0): BLUE})
    files.image.update({"width": 70_000, "height": 1})
    files.item["bbox"] = [0, 0, 35_000, 1]


HALVES: Colours = {(5, 5): RED, (5, 27): RED, (30, 5): BLUE, (30, 27): BLUE}


def halves() -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), RED)
    picture.paste(BLUE, (20, 0, WIDTH, HEIGHT))
    return picture


def palette_index(x: int) -> int:
    return halves().convert("P").getpixel((x, 5))


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG of one bit a pixel."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
