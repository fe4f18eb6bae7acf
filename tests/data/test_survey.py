"""What is told of pictures that a detector may see otherwise than people do."""

import json

import numpy as np
import pytest
from PIL import Image

import dndetr.data.survey as module
from dndetr.data.check import check_dataset, lines
from dndetr.data.coco import ImageRecord
from dndetr.data.images import Reading
from dndetr.data.survey import LOOKED, Survey, evenly, spread, survey
from tests.data.coco_files import at

RNG = np.random.default_rng(0)


def record(folder, i: int, picture: Image.Image, size=None, suffix="png", **options) -> ImageRecord:
    path = folder / f"{i}.{suffix}"
    picture.save(path, **options)
    return ImageRecord(i, path, *(size or picture.size))


def numbers(low: int, high: int, kind=np.uint16) -> np.ndarray:
    """(120, 120), among them the least and the greatest."""
    values = RNG.integers(low, high + 1, (120, 120)).astype(kind)
    values[0, :4], values[1, :4] = low, high
    return values


def look(images, **reading) -> Survey:
    return survey(images, Reading(**reading))


def photograph() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_of_plain_pictures_nothing_is_said_and_none_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_image", None)
    found = look([record(tmp_path, i, photograph()) for i in range(3)])
    assert found.lines() == [] and found.reading == Reading()


def test_a_range_is_what_the_numbers_reach(tmp_path):
    thermal = [record(tmp_path, i, Image.fromarray(numbers(51462 + i, 52051 - i))) for i in range(3)]
    found = look(thermal)
    assert found.reading.range == (51462, 52051)
    assert found.lines() == ["not of 8 bits (16-bit): 3 of 3 images; 51462 to 52051 is seen as 0 to 255 (data.range)"]
    given = look(thermal, range=(0, 65535))
    assert given.reading.range == (0, 65535)
    assert given.lines()[1] == (
        "WARNING: the detector sees fewer than 16 grey levels in 3 of 3 images; data.range=MIN,MAX says which numbers matter"
    )
    open_still = survey(thermal, Reading(), settle=False)
    assert open_still.reading.range is None and "integers are seen from 0 to 65535" in open_still.lines()[0]


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(60, 220, np.int32), (0, 4095, np.uint16), (-30, 5, np.float32), (200, 900, np.float32)]
)
def test_every_kind_of_number_has_its_range(tmp_path, low, high, kind):
    found = look([record(tmp_path, 0, Image.fromarray(numbers(low, high, kind)), suffix="tif")])
    assert found.reading.range == (low, high) and len(found.lines()) == 1


def test_dead_pixels_and_an_odd_picture_are_out_of_the_range_and_small_objects_are_not(tmp_path):
    images = []
    for i in range(120):
        values = numbers(1000, 2000)
        values[50:53, 50:53] = 3000  # a small object
        values[60, 60], values[61, 61] = 65535, 0  # dead
        images.append(record(tmp_path, i, Image.fromarray(values if i else np.full_like(values, 60000))))
    assert spread(image.path for image in images) == (1000, 3000)


def test_numbers_that_are_none_are_out_of_the_range(tmp_path):
    values = numbers(-30, 5, np.float32)
    values[:20], values[20:30], values[30:40] = np.nan, -np.inf, np.inf
    assert look([record(tmp_path, 0, Image.fromarray(values), suffix="tif")]).reading.range == (-30, 5)


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_pictures_of_one_number_have_no_range(tmp_path, value):
    flat = record(tmp_path, 0, Image.fromarray(np.full((9, 9), value, np.float32)), suffix="tif")
    assert look([flat]).reading.range is None


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def rotated(folder) -> list[ImageRecord]:
    """One that is not, one upside down, one whose annotations fit the turned and one whose fit the stored picture."""
    kinds = [(1, (30, 20)), (3, (30, 20)), (6, (20, 30)), (8, (30, 20))]
    return [record(folder, i, photograph(), size, "jpg", exif=exif(o)) for i, (o, size) in enumerate(kinds)]


def test_rotations_are_told_with_what_is_assumed(tmp_path):
    images = rotated(tmp_path)
    assert look(images).lines() == [
        "EXIF rotation in 3 of 4 images, applied but to 1 whose annotations give the size as stored: boxes are taken to be of "
        "the pictures so turned (data.exif=ignore: as stored)"
    ]
    (line,) = look(images[:3]).lines()
    assert line.startswith("EXIF rotation in 2 of 3 images, applied: boxes are taken to be of the pictures so turned")
    assert look(images, exif="ignore").lines() == [
        "EXIF rotation in 3 of 4 images, not applied: boxes are taken to be of the pictures as stored (data.exif=ignore)"
    ]


def see_through(alpha: np.ndarray) -> Image.Image:
    """A picture over its upper half, and one colour below."""
    colours = np.full((40, 40, 3), 9)
    colours[:20] = RNG.integers(0, 256, (20, 40, 3))
    return Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8))


def test_a_picture_that_transparency_hides_is_told_of_and_a_cut_out_one_is_not(tmp_path):
    hiding, cut = np.full((40, 40), 255), np.full((40, 40), 255)
    hiding[:10], cut[20:] = 0, 0
    images = [record(tmp_path, i, see_through(alpha)) for i, alpha in enumerate((hiding, cut))]
    told = "transparent pixels hold a picture in 1 of 2 images with transparency, "
    assert look(images).lines() == [told + "seen as white; data.alpha=drop shows it"]
    assert look(images, alpha="drop").lines() == [told + "shown (data.alpha=drop)"]
    assert look(images[1:]).lines() == []


def test_pages_beyond_the_first_are_told_of(tmp_path):
    pages = record(tmp_path, 0, photograph(), suffix="tif", save_all=True, append_images=[photograph()])
    assert look([pages]).lines() == ["several pages or frames in 1 of 1 images; the first is read"]


def test_of_many_images_some_are_looked_at_evenly():
    assert list(evenly(range(10), 3)) == [0, 4, 8] and list(evenly(range(3), 10)) == [0, 1, 2]
    assert len(evenly(range(118_287), LOOKED)) <= LOOKED


def test_a_sample_says_that_it_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED", 2)
    images = [record(tmp_path, i, photograph(), suffix="jpg", exif=exif(3)) for i in range(4)]
    assert look(images).lines()[0].startswith("EXIF rotation in 2 of 2 images looked at, applied:")


def test_what_cannot_be_read_is_passed_over(tmp_path):
    images = [record(tmp_path, i, Image.fromarray(numbers(0, 4095))) for i in range(3)]
    images[0].path.write_bytes(b"broken")
    images[1].path.write_bytes(images[1].path.read_bytes()[:300])
    found = look(images)
    assert found.reading.range == (0, 4095)
    assert found.lines()[0].startswith("not of 8 bits (16-bit): 2 of 2 images looked at;")


def write_thermal(root, numbers_of):
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        images = [{"id": i, "file_name": f"{i}.png", "width": 120, "height": 120} for i in range(4)]
        for image in images:
            Image.fromarray(numbers_of(split)).save(root / split / image["file_name"])
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 50, 50], "area": 9, "iscrowd": 0} for i in range(4)]
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "hot"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_data_check_tells_of_every_picture_what_the_detector_will_see(tmp_path):
    """The range is that of the training images, for the validation images as well."""
    root = write_thermal(tmp_path, lambda split: numbers(100, 300) if split == "train" else numbers(299, 4000))
    text = lines(check_dataset(at(root)))
    assert text.count("  not of 8 bits (16-bit): 4 of 4 images; 100 to 300 is seen as 0 to 255 (data.range)") == 2
    few = [line for line in text if "WARNING" in line]
    assert few == [
        "  WARNING: the detector sees fewer than 16 grey levels in 4 of 4 images; data.range=MIN,MAX says which numbers matter"
    ]
    assert text.index(few[0]) > text.index("val: 4 images, 4 with objects, 0 without")


def test_data_check_counts_rotations_in_every_image(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED", 1)
    root = write_thermal(tmp_path, lambda split: numbers(0, 65535))
    for i in range(3):
        photograph().resize((120, 120)).save(root / "train" / f"{i}.png", exif=exif(6 if i else 1))
    told = [line for line in lines(check_dataset(at(root))) if "EXIF" in line]
    assert len(told) == 1 and told[0].startswith("  EXIF rotation in 2 of 4 images, applied: boxes are taken to be of")
