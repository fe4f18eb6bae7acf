"""Every layout holds the same dataset: found by itself, on disk and in a zip file, read to the same images and objects."""

import shutil
from pathlib import Path

import pytest
import torch

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data.check import check_dataset
from dndetr.data.coco import load_split
from dndetr.data.layouts import Dataset, find_dataset
from dndetr.data.loader import DetectionDataset
from tests.data.coco_files import at
from tests.data.layouts import CLASSES, SPLITS, WRITERS, write_plain

every_layout = pytest.mark.parametrize("layout", WRITERS)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_plain(tmp_path_factory.mktemp("plain") / "data")


def dataset(settings: list[str], **more) -> Dataset:
    """What the settings that a writer returns mean."""
    named = {key.removeprefix("data."): value for key, _, value in (text.partition("=") for text in settings)}
    return find_dataset(DataConfig(**named, **more))


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    return "\n".join(caught.value.lines)


@every_layout
def test_a_layout_is_found_and_read_as_the_same_dataset(root, tmp_path, layout):
    found = dataset(WRITERS[layout](root, tmp_path / "other"))
    assert f", {layout}: " in found.line
    for split in SPLITS:
        theirs, ours = load_split(found, split), load_split(at(root), split)
        assert [(i.id, i.width, i.height, Path(str(i.path)).name) for i in theirs.images] == [
            (i.id, i.width, i.height, i.path.name) for i in ours.images
        ]
        assert theirs.labels.tolist() == ours.labels.tolist() and theirs.spans == ours.spans
        assert torch.equal(theirs.boxes, ours.boxes)
        if layout != "metadata.jsonl":
            assert tuple(theirs.categories.names[-3:]) == CLASSES


@every_layout
def test_a_zip_file_of_a_layout_is_read_where_it_lies(root, tmp_path, layout):
    """With everything in one folder, as most people pack it."""
    settings = WRITERS[layout](root, tmp_path / "other" / "inner")
    if layout == "COCO files that were named":
        pytest.skip("its files are named one by one")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "other")
    shutil.rmtree(tmp_path / "other")
    found = at(tmp_path / "packed.zip")
    assert f"packed.zip, {layout}: " in found.line and settings
    ours, theirs = load_split(at(root), "train"), load_split(found, "train")
    assert torch.equal(theirs.boxes, ours.boxes) and theirs.labels.tolist() == ours.labels.tolist()
    config = DataConfig(sizes=(32,), eval_size=32, max_size=64)
    views = [DetectionDataset(split, config, 0, train=True)[1, 3] for split in (ours, theirs)]
    assert torch.equal(views[0][0], views[1][0]) and views[0][1].image_id == views[1][1].image_id
    assert not check_dataset(found).defects
