"""Which pictures are meant by files and folders, and what is said of the others."""

import os
from pathlib import Path

import pytest
from PIL import Image

from dndetr.data.search import find_images


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "in"


def picture(path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, **options)
    return path


def other(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no picture")
    return path


def places(*paths) -> list[str]:
    return [str(place) for place in find_images(paths).places.values()]


def test_a_folder_means_all_below_it(folder):
    for name in ("b.jpg", "a.PNG", "sub/c.tif", "sub/deep/d.webp"):
        picture(folder / name)
    found = find_images([folder])
    assert places(folder) == ["a.PNG", "b.jpg", "sub/c.tif", "sub/deep/d.webp"]
    assert [folder / place for place in found.places.values()] == list(found.places)
    assert found.lines() == [] and found.problems == []


def test_kinds_that_are_not_read_are_counted_by_their_suffix(folder):
    picture(folder / "a.jpg")
    for name in ("b.HEIC", "sub/c.heic", "sub/d.jxl", "e.dng", "README", "report.pdf", "clip.mp4"):
        other(folder / name)
    (line,) = find_images([folder]).lines()
    told = "passed over 7 files of no kind that is read here: 2 .heic, "
    assert line.startswith(told)
    assert sorted(line.removeprefix(told).split(", ")) == ["1 .dng", "1 .jxl", "1 .mp4", "1 .pdf", "1 without a suffix"]


def test_a_picture_without_a_suffix_is_one(folder):
    picture(folder / "sub" / "photograph", format="jpeg")
    other(folder / "Makefile")
    found = find_images([folder])
    assert places(folder) == ["sub/photograph"]
    assert found.lines() == ["passed over 1 file of no kind that is read here: 1 without a suffix"]


def test_what_is_hidden_is_left_alone(folder):
    picture(folder / "a.jpg")
    for name in ("._a.jpg", ".thumbnails/a.jpg", ".DS_Store.png"):
        other(folder / name)
    found = find_images([folder])
    assert places(folder) == ["a.jpg"] and found.lines() == []


def test_a_folder_without_pictures_says_what_it_holds(folder):
    other(folder / "sub" / "a.HEIC")
    assert find_images([folder]).problems == [f"{folder}: holds no images but 1 .heic"]
    (folder / "empty").mkdir()
    assert find_images([folder / "empty"]).problems == [f"{folder / 'empty'}: holds no images"]


def test_a_file_that_is_named_is_taken_whatever_it_is_called(folder):
    file = other(folder / "a.heic")
    assert places(file) == ["a.heic"] and find_images([file]).lines() == []
    assert find_images([folder / "gone.jpg"]).problems == [f"{folder / 'gone.jpg'}: no such file or folder"]


def test_a_picture_that_is_meant_twice_is_taken_once(folder):
    file = picture(folder / "sub" / "a.jpg")
    assert places(file, folder) == ["a.jpg"] and places(folder, file) == ["sub/a.jpg"]


def test_links_are_followed_and_lead_nowhere_twice(folder, tmp_path):
    picture(tmp_path / "elsewhere" / "b.jpg")
    picture(folder / "a.jpg")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "link-again").symlink_to(tmp_path / "elsewhere")
    (folder / "link" / "up").symlink_to(folder)
    assert places(folder) == ["a.jpg", "link/b.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    def refused(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    original = os.scandir
    picture(folder / "a.jpg")
    picture(folder / "closed" / "b.jpg")
    monkeypatch.setattr(os, "scandir", refused)
    found = find_images([folder])
    assert found.problems == [f"{folder / 'closed'}: cannot be listed: Permission denied"]
    assert list(found.places) == [folder / "a.jpg"]
