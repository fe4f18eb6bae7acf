import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from dndetr.console import UserError
from dndetr.data.check import check_dataset
from dndetr.data.coco import load_split
from dndetr.data.layouts import resolve_root
from dndetr.data.shapes import CATEGORIES, FINE, Figure, draw_image, form_mask, make_shapes, measure, shapes_root, visible
from tests.data.coco_files import at

SMALL = {"train": 2, "val": 1, "size": 32, "seed": 0}


def digests(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DNDETR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_layout(shapes):
    split = load_split(at(shapes), "train")
    assert len(split.images) == 24 and len(load_split(at(shapes), "val").images) == 8
    assert split.categories.ids == (1, 2, 4, 7, 11, 16) and "star" in split.categories.names
    assert not check_dataset(at(shapes), queries=8).defects
    assert COCO(shapes / "annotations" / "instances_val.json").getCatIds() == list(CATEGORIES)


def test_a_seed_is_a_dataset(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_shapes(tmp_path / name, **SMALL | {"seed": seed})
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again and first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)
    assert first["train/000001.jpg"] != first["val/000001.jpg"]


def test_what_the_pictures_hold():
    """300 images of 96 x 96: how many objects, how large, and none of them hidden."""
    counts, sides, classes = [], [], set()
    for i in range(300):
        picture, objects = draw_image(np.random.default_rng((5, i)), 96)
        assert picture.size == (96, 96)
        counts.append(len(objects))
        for entry in objects:
            x, y, width, height = entry["bbox"]
            assert x >= 0 and y >= 0 and x + width <= 96 and y + height <= 96
            assert 10 < entry["area"] <= width * height
            sides.append(max(width, height))
            classes.add(entry["category_id"])
    assert 3.5 < np.mean(counts) < 4.3 and max(counts) == 8 and 0.01 < counts.count(0) / 300 < 0.06
    assert classes == set(CATEGORIES)
    assert min(sides) < 10 and max(sides) > 50 and 15 < np.median(sides) < 30


@pytest.mark.parametrize("form, share", [("circle", np.pi / 4), ("ring", np.pi / 4 * (1 - 0.55**2))])
def test_forms_have_their_size(form, share):
    entry = measure(1, form_mask(form, np.array([40.0, 50.0]), 40, 0.3, 96))
    assert entry["bbox"] == pytest.approx([20, 30, 40, 40], abs=0.5)
    assert entry["area"] == pytest.approx(share * 1600, rel=0.03)


@pytest.mark.parametrize("form", CATEGORIES.values())
def test_every_form_fills_its_side(form):
    for angle in (0, 0.4, 1.1):
        _, _, width, height = measure(1, form_mask(form, np.array([48.0, 48.0]), 30, angle, 96))["bbox"]
        assert max(width, height) == pytest.approx(30, abs=0.5)


def test_boxes_are_of_what_is_visible():
    owner = Image.new("L", (10 * FINE, 10 * FINE))
    draw = ImageDraw.Draw(owner)
    draw.rectangle((4, 8, 4 + 23, 8 + 15), fill=1)
    draw.rectangle((16, 0, 39, 39), fill=2)
    assert measure(4, visible(owner, 1)) == {"category_id": 4, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    assert Figure(4, owner).category == 4


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="mine: is not an empty folder"):
        make_shapes(tmp_path / "mine", **SMALL)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    make_shapes(tmp_path / "empty", **SMALL)
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == ["annotations", "train", "val"]


def test_numbers_that_make_no_dataset(tmp_path):
    for name, value in (("train", 0), ("val", 0), ("size", 8), ("seed", -1)):
        with pytest.raises(UserError, match=f"{name}={value}"):
            make_shapes(tmp_path / "a", **SMALL | {name: value})
    assert not list(tmp_path.iterdir())


def test_cached_once(cache):
    root = shapes_root(**SMALL)
    assert root.parent == cache and {"train", "val", "annotations"} == {p.name for p in root.iterdir()}
    (root / "mark").touch()
    assert shapes_root(**SMALL) == root and (root / "mark").exists()
    assert shapes_root(**SMALL | {"seed": 1}) != root
    assert len(list(cache.iterdir())) == 2  # no drafts are left


def test_several_at_once(cache):
    with ThreadPoolExecutor(4) as pool:
        roots = list(pool.map(lambda _: shapes_root(**SMALL), range(4)))
    assert len(set(roots)) == 1 and list(cache.iterdir()) == roots[:1]
    assert not check_dataset(at(roots[0])).defects


def test_an_interrupted_drawing_leaves_nothing(cache, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dndetr.data.shapes.draw_image", stop)
    with pytest.raises(KeyboardInterrupt):
        shapes_root(**SMALL)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNDETR_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written: Not a directory\nset DNDETR_CACHE"):
        shapes_root(**SMALL)


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("DNDETR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shapes_root(**SMALL).parent == tmp_path / "dndetr"


def test_resolve_root(cache, monkeypatch):
    monkeypatch.setattr("dndetr.data.shapes.make_shapes", lambda root, **_: root.mkdir(parents=True))
    assert resolve_root("shapes") == cache / "shapes-v1-train2000-val200-size96-seed0"
    assert resolve_root("~/coco") == Path.home() / "coco"


def test_annotations_are_numbered(shapes):
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
