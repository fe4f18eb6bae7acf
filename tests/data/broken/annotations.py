"""Annotation files that are spoilt: a value, the whole file, boxes and masks."""

from __future__ import annotations

import json
import os
import zlib

from tests.data.broken.kinds import IMAGE, INFINITE, ITEM, NAN, OBJECTS, refused, repaired, sound, values

# One wrong value.

ID = "id must be a whole number"

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


@refused("its images are not there: no folder")
def image_folder_missing(files):
    files.folder.rename(files.outside / "away")


@sound()
def file_name_of_windows(files):
    files.image["file_name"] = f".\\{files.split}\\{files.image['file_name']}"


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
