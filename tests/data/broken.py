"""Every way in which a small sound dataset is spoilt, and what is expected then.

A kind spoils one split, in memory or on disk. It is `refused`: every command that reads it names the mistake in these
words; `repaired`: the check names it and training goes on with these objects; or `sound`: it looks odd, and is read as a
viewer shows it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.training.tiny import write_dataset

OBJECTS, IMAGES = 6, 4  # of each split while it is sound
WIDTH, HEIGHT = 40, 32
RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)
NAN, INFINITE = float("nan"), float("inf")

Colours = dict[tuple[int, int], tuple[int, int, int]]  # what is seen at x, y


@dataclass
class Files:
    """A split on its way to be spoilt. The second image, with the first object, is the one that most kinds spoil."""

    root: Path
    split: str
    content: dict[str, Any]
    raw: bytes | None = None  # the whole annotation file, instead of `content`
    colours: Colours = field(default_factory=dict)  # that the second image must show

    @property
    def file(self) -> Path:
        return self.root / "annotations" / f"instances_{self.split}.json"

    @property
    def folder(self) -> Path:
        return self.root / self.split

    @property
    def outside(self) -> Path:
        """A folder beside the root."""
        folder = self.root.parent / f"outside-{self.split}"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def image(self) -> dict[str, Any]:
        return self.content["images"][1]

    @property
    def item(self) -> dict[str, Any]:
        return self.content["annotations"][0]

    @property
    def category(self) -> dict[str, Any]:
        return self.content["categories"][0]

    @property
    def picture(self) -> Path:
        return self.folder / self.image["file_name"]

    def named(self, name: str) -> Path:
        """The second image's file under another name, which its entry knows."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.picture.rename(path)
        self.image["file_name"] = name
        return path

    def draw(self, picture: Image.Image, name: str, colours: Colours, **options: Any) -> None:
        """Put another picture in the second image's place."""
        self.named(name).unlink()
        picture.save(self.picture, **options)
        self.colours = colours


class Kind(NamedTuple):
    name: str
    spoil: Callable[[Files], None]
    outcome: str  # refused, repaired or sound
    words: tuple[str, ...]  # of the message
    objects: int  # that are left
    picture: bool  # whether it is the picture that is spoilt


KINDS: list[Kind] = []


def write_broken(root: Path, kind: Kind, splits: tuple[str, ...] = ("train", "val")) -> dict[str, Files]:
    """A dataset with these splits spoilt."""
    write_dataset(root, train=IMAGES, val=IMAGES)
    written = {}
    for split in splits:
        files = written[split] = Files(root, split, {})
        files.content = json.loads(files.file.read_text())
        kind.spoil(files)
        if files.file.is_file():
            files.file.write_bytes(json.dumps(files.content).encode() if files.raw is None else files.raw)
    return written


def kind(outcome: str, *words: str, objects: int = OBJECTS, picture: bool = False) -> Callable:
    def add(spoil: Callable[[Files], None]) -> Callable[[Files], None]:
        KINDS.append(Kind(spoil.__name__, spoil, outcome, words, objects, picture))
        return spoil

    return add


def refused(*words: str, picture: bool = False) -> Callable:
    return kind("refused", *words, picture=picture)


def repaired(*words: str, objects: int) -> Callable:
    return kind("repaired", *words, objects=objects)


def sound(objects: int = OBJECTS, picture: bool = False) -> Callable:
    return kind("sound", objects=objects, picture=picture)


def values(part: str, key: str, *cases: tuple[str, Any, tuple[str, ...]]) -> None:
    """Kinds that give one entry (image, item or category) a wrong value; `...` takes the key away."""
    for name, value, words in cases:

        def spoil(files: Files, value: Any = value) -> None:
            getattr(files, part)[key] = value
            if value is ...:
                del getattr(files, part)[key]

        KINDS.append(Kind(f"{part}_{key}_{name}", spoil, "refused", words, OBJECTS, False))


# One wrong value.

ID = "id must be a whole number"
IMAGE, ITEM = "image 13: ", "image 13: annotation 0: "

values(
    "image", "id",
    ("missing", ..., ('images[1] has no "id"',)),
    ("text", "13", (ID, 'images[1]', 'got "13"')),
    ("fraction", 13.0, (ID, "got 13.0")),
    ("bool", True, (ID, "got true")),
    ("null", None, (ID, "got null")),
    ("list", [13], (ID, "got [13]")),
    ("beyond_64_bits", 2**63, (ID, "got 9223372036854775808")),
    ("twice", 3, ("image 3: id 3 appears again (images[1])",)),
)  # fmt: skip
values(
    "image", "width",
    ("missing", ..., (IMAGE, 'has no "width"')),
    ("text", "40", (IMAGE, 'width must be a whole number above 0, got "40"')),
    ("zero", 0, (IMAGE, "width must be", "got 0")),
    ("negative", -40, (IMAGE, "width must be", "got -40")),
    ("fraction", 39.5, (IMAGE, "width must be", "got 39.5")),
    ("nan", NAN, (IMAGE, "width must be", "got NaN")),
    ("infinite", INFINITE, (IMAGE, "width must be", "got Infinity")),
    ("of_another_picture", 41, (IMAGE, "1.png: the image is 40 x 32, its annotations say 41 x 32")),
)  # fmt: skip
values(
    "image", "file_name",
    ("missing", ..., (IMAGE, 'has no "file_name"')),
    ("number", 1, (IMAGE, "file_name must be text", "got 1")),
    ("empty", "", (IMAGE, "file_name must be text", 'got ""')),
    ("upwards", "../val/1.png", (IMAGE, "'../val/1.png' must stay in the image folder")),
    ("hidden_upwards", "a/../../val/1.png", (IMAGE, "must stay in the image folder")),
    ("absolute", "/etc/hostname", (IMAGE, "'/etc/hostname' must stay in the image folder")),
    ("folder_itself", ".", (IMAGE, "'.' must stay in the image folder")),
    ("with_nul", "1.png\0", (IMAGE, "file_name must be text without control characters", r'"1.png\u0000"')),
    ("with_newline", "1\n.png", (IMAGE, "file_name must be text without control characters")),
    ("half_a_character", "\ud83d.png", (IMAGE, "file_name must be text", r"\ud83d.png")),
    ("too_long", "x" * 5000 + ".png", (IMAGE, "xxx... does not exist")),
    ("of_nothing", "gone.png", (IMAGE, "gone.png does not exist")),
    ("of_windows", "train\\1.png", (IMAGE, "does not exist; write / between folders")),
    ("of_another_image", "0.png", (IMAGE, "file_name '0.png' is that of image 3 too; list each file once")),
    ("of_another_image_in_disguise", "./0.png", (IMAGE, "file_name '0.png' is that of image 3 too")),
)  # fmt: skip
values(
    "item", "id",
    ("missing", ..., ('annotations[0] has no "id"',)),
    ("text", "0", (ID, "annotations[0]", 'got "0"')),
    ("bool", False, (ID, "got false")),
    ("twice", 1, ("image 23: annotation 1: id 1 appears again (annotations[1])",)),
)  # fmt: skip
values(
    "item", "image_id",
    ("missing", ..., ("annotation 0: ", 'has no "image_id"')),
    ("text", "13", ("annotation 0: ", 'image_id must be a whole number, got "13"')),
    ("fraction", 13.0, ("annotation 0: ", "image_id must be a whole number, got 13.0")),
    ("dangling", 99, ("image 99: annotation 0: ", 'image 99 is not in "images"')),
)  # fmt: skip
values(
    "item", "category_id",
    ("missing", ..., (ITEM, 'has no "category_id"')),
    ("text", "2", (ITEM, 'category_id must be a whole number, got "2"')),
    ("bool", True, (ITEM, "category_id must be a whole number, got true")),
    ("dangling", 99, (ITEM, 'category 99 is not in "categories"')),
)  # fmt: skip
BOX = "bbox must be [x, y, width, height], got "
values(
    "item", "bbox",
    ("missing", ..., (ITEM, 'has no "bbox"')),
    ("null", None, (ITEM, BOX + "null")),
    ("of_three", [1, 2, 3], (ITEM, BOX + "[1, 2, 3]")),
    ("of_texts", ["1", "2", "3", "4"], (ITEM, BOX)),
    ("of_bools", [True, True, True, True], (ITEM, BOX)),
    ("as_object", {"x": 1}, (ITEM, BOX + '{"x": 1}')),
    ("nan", [1, NAN, 3, 4], (ITEM, "must be finite, got [1, NaN, 3, 4]")),
    ("infinite", [1, 2, INFINITE, 4], (ITEM, "must be finite, got [1, 2, Infinity, 4]")),
    ("beyond_64_bits", [1, 2, 10**400, 4], (ITEM, BOX)),
)  # fmt: skip
values(
    "item", "area",
    ("text", "9", (ITEM, 'area must be a number from 0 to 1e+10, got "9"')),
    ("null", None, (ITEM, "area must be a number", "got null")),
    ("negative", -9, (ITEM, "area must be a number", "got -9")),
    ("beyond_cocos", 1e11, (ITEM, "area must be a number", "got 100000000000.0")),
    ("nan", NAN, (ITEM, "bbox and area must be finite")),
)  # fmt: skip
values(
    "item", "iscrowd",
    ("text", "0", (ITEM, 'iscrowd must be 0 or 1, got "0"')),
    ("null", None, (ITEM, "iscrowd must be 0 or 1, got null")),
    ("two", 2, (ITEM, "iscrowd must be 0 or 1, got 2")),
)  # fmt: skip
values("category", "id", ("missing", ..., ('categories[0] has no "id"',)), ("twice", 5, ("id 5 appears again",)))
values(
    "category", "name",
    ("missing", ..., ('has no "name" (categories[0])',)),
    ("empty", "", ("name must be text", 'got "" (categories[0])')),
    ("blank", " ", ("name must be text", 'got " "')),
    ("with_escape", "\x1b[2J", ("name must be text without control characters", "(categories[0])")),
)  # fmt: skip


# The annotation file as a whole.


@refused("line 1, column", "malformed JSON", "export the file again")
def json_cut_off(files):
    files.raw = json.dumps(files.content).encode()[:700]


@refused("line 1, column 1: malformed JSON")
def json_of_no_bytes(files):
    files.raw = b""


@refused("line 1, column 1: malformed JSON")
def json_is_a_web_page(files):
    files.raw = b"<!DOCTYPE html><html>404</html>"


@refused("line 1: not text: byte 0xe9; save the file as UTF-8")
def json_in_latin_1(files):
    files.category["name"] = "café"
    files.raw = json.dumps(files.content, ensure_ascii=False).encode("latin-1")


@refused("not text")
def json_is_compressed(files):
    files.raw = b"\x1f\x8b\x08\x00" + zlib.compress(json.dumps(files.content).encode())


@sound()
def json_in_utf_16(files):
    files.raw = json.dumps(files.content).encode("utf-16")


@sound()
def json_with_a_byte_order_mark(files):
    files.raw = json.dumps(files.content).encode("utf-8-sig")


@refused("nested too deeply")
def json_nested_without_end(files):
    files.raw = b'{"images": ' + b"[" * 200_000


@refused("cannot be read", "5000 digits")
def json_with_a_number_of_5000_digits(files):
    files.raw = json.dumps(files.content).encode().replace(b'"width": 40', b'"width": 4' + b"0" * 4999, 1)


@refused(ITEM, "must be finite, got [Infinity")
def json_with_a_number_beyond_floats(files):
    files.raw = json.dumps(files.content).encode().replace(b'"bbox": [', b'"bbox": [1e400, 1, 2, 3], "was": [', 1)


@refused('the key "bbox" of the object with id 0 appears twice')
def json_with_a_key_twice(files):
    files.raw = json.dumps(files.content).encode().replace(b'"bbox": ', b'"bbox": [0, 0, 1, 1], "bbox": ', 1)


@refused("is not COCO: it must hold an object")
def json_of_results(files):
    files.content = [{"image_id": 13, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.9}]


@refused(ITEM, 'has no "bbox"')
def json_of_captions(files):
    files.content["annotations"] = [{"id": 0, "image_id": 13, "caption": "a square"}]
    del files.content["categories"]


@sound()
def json_of_keypoints(files):
    files.category["keypoints"] = ["nose"]
    for entry in files.content["annotations"]:
        entry |= {"keypoints": [3, 4, 2], "num_keypoints": 1}


@refused('annotations[0] has no "id"')
def json_of_panoptic_segments(files):
    files.content["annotations"] = [{"image_id": 13, "file_name": "1.png", "segments_info": [{"id": 1, "category_id": 2}]}]


@refused('"images" must be a list')
def images_as_an_object(files):
    files.content["images"] = {str(image["id"]): image for image in files.content["images"]}


@refused("images[1] must be an object, got null")
def image_is_null(files):
    files.content["images"][1] = None


@refused('"images" is empty; a split needs at least one image')
def images_empty(files):
    files.content |= {"images": [], "annotations": []}


@refused('has no "images"')
def images_missing(files):
    del files.content["images"]


@refused('has no "annotations"')
def annotations_missing(files):
    del files.content["annotations"]


@refused('has no "categories"')
def categories_missing(files):
    del files.content["categories"]


@refused(ITEM, 'is not in "categories"')
def categories_empty(files):
    files.content["categories"] = []


@refused("is not a regular file")
def annotation_file_is_a_folder(files):
    files.file.unlink()
    files.file.mkdir()


@refused("is not a regular file")
def annotation_file_is_a_pipe(files):
    files.file.unlink()
    os.mkfifo(files.file)


@refused("is there, but not its images: no folder")
def image_folder_missing(files):
    files.folder.rename(files.outside / "away")


# Boxes and masks that are reported, and mended or not used.


@repaired(ITEM, "bbox [30, 20, 40, 40] leaves its image of 40 x 32; it is clipped", objects=OBJECTS)
def box_leaves_the_image(files):
    files.item["bbox"] = [30, 20, 40, 40]


@repaired(ITEM, "it is clipped", objects=OBJECTS)
def box_as_large_as_floats(files):
    files.item["bbox"] = [-1e308, -1e308, 1.7e308, 1.7e308]


@repaired(ITEM, "bbox [50, 5, 8, 8] lies outside its image of 40 x 32; it is left out", objects=OBJECTS - 1)
def box_outside_the_image(files):
    files.item["bbox"] = [50, 5, 8, 8]


@repaired(ITEM, "lies outside its image", objects=OBJECTS - 1)
def box_just_outside_the_image(files):
    files.item["bbox"] = [40, 5, 0.5, 8]


@repaired(ITEM, "has no width or no height; it is left out", objects=OBJECTS - 1)
def box_without_width(files):
    files.item["bbox"] = [5, 5, 0, 8]


@repaired(ITEM, "has no width or no height", objects=OBJECTS - 1)
def box_of_negative_height(files):
    files.item["bbox"] = [5, 15, 8, -8]


@repaired("image 3: annotation 1000: ", "it is left out", objects=OBJECTS)
def crowd_without_width(files):
    files.content["annotations"][-1]["bbox"] = [5, 5, 0, 8]


@repaired(ITEM, "segmentation is of [height, width] [40, 32], its image [32, 40]; only boxes are used", objects=OBJECTS)
def mask_of_another_size(files):
    files.item["segmentation"] = {"size": [40, 32], "counts": "04L4"}


@sound()
def masks_that_are_no_masks(files):
    for entry, mask in zip(files.content["annotations"], ([], None, "x", [[NAN]], 3), strict=False):
        entry["segmentation"] = mask


@sound()
def keys_that_nobody_knows(files):
    files.content |= {"info": None, "licenses": "x", "": {}}
    files.item.update({"attributes": {"occluded": True}, "score": 0.5})


@sound()
def numbers_with_a_point(files):
    files.image.update({"width": 40.0, "height": 32.0})
    files.item.update({"bbox": [float(v) for v in files.item["bbox"]], "iscrowd": 0.0})


@sound()
def area_and_iscrowd_missing(files):
    del files.item["area"], files.item["iscrowd"]


@repaired(ITEM, "has no width or no height", objects=OBJECTS - 1)
def box_thinner_than_a_grain(files):
    files.item["bbox"] = [5, 5, 1e-9, 8]


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
