"""Every layout holds the same dataset: found by itself, on disk and in a zip file, read to the same images and objects."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data.check import check_dataset
from dndetr.data.coco import load_split
from dndetr.data.layouts import Dataset, find_dataset
from dndetr.data.loader import DetectionDataset, eval_loader
from tests.data.coco_files import at
from tests.data.layouts import CLASSES, SPLITS, WRITERS, splits_of, write_json, write_plain

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


# What is said of layouts that do not fit


def test_two_files_that_could_both_be_meant_are_refused(root, tmp_path):
    shutil.copytree(root, tmp_path / "both")
    annotations = tmp_path / "both" / "annotations"
    shutil.copy(annotations / "instances_train.json", annotations / "instances_train2017.json")
    told = refusal(at, tmp_path / "both")
    assert "instances_train2017.json and annotations/instances_train.json could both be the train split" in told
    assert "data.train=FILE" in told


def test_two_folders_of_one_split_are_refused(root, tmp_path):
    WRITERS["Roboflow's COCO export"](root, tmp_path / "both")
    shutil.copytree(tmp_path / "both" / "valid", tmp_path / "both" / "val")
    assert "val and valid could both be" in refusal(at, tmp_path / "both")


def test_a_single_set_of_images_needs_a_holdout_for_validation(root, tmp_path):
    shutil.copytree(root / "train", tmp_path / "one" / "images")
    shutil.copytree(root / "annotations", tmp_path / "one" / "annotations")
    (tmp_path / "one" / "annotations" / "instances_val.json").unlink()
    (tmp_path / "one" / "annotations" / "instances_train.json").rename(
        tmp_path / "one" / "annotations" / "instances_default.json"
    )
    told = refusal(load_split, at(tmp_path / "one"), "val")
    assert "has no validation split, only annotations/instances_default.json; data.holdout=0.1 takes a tenth" in told
    assert "\n" not in told
    held = [dataset([f"data.root={tmp_path / 'one'}"], holdout=0.3) for _ in range(2)]
    ids = [[image.id for image in load_split(found, split).images] for found in held for split in SPLITS]
    assert ids[:2] == ids[2:]
    assert len(ids[1]) == 3 and sorted(ids[0] + ids[1]) == list(range(1, 11)) and ids[0] == sorted(ids[0])
    other = find_dataset(DataConfig(root=str(tmp_path / "one"), holdout=0.3), seed=1)
    assert [image.id for image in load_split(other, "val").images] != ids[1]


def test_objects_go_with_the_images_that_are_held_out(root, tmp_path):
    named = [f"data.train={root}/annotations/instances_train.json", f"data.images={root}/train"]
    parts = [load_split(dataset(named, holdout=0.3), split) for split in SPLITS]
    whole = load_split(dataset(named), "train")
    for part in parts:
        for image in part.images:
            assert torch.equal(part.objects(image.id).boxes, whole.objects(image.id).boxes)
        assert set(part.written.image_ids.tolist()) <= {image.id for image in part.images}
    assert sum(len(part.labels) for part in parts) == len(whole.labels)


def test_a_holdout_beside_a_validation_split_is_refused(root):
    told = refusal(dataset, [f"data.root={root}"], holdout=0.1)
    assert "has a validation split, annotations/instances_val.json: set data.holdout=0" in told


def test_one_image_cannot_be_shared_out(tmp_path):
    root = write_plain(tmp_path / "data", train=1, val=1)
    named = [f"data.train={root}/annotations/instances_train.json", f"data.images={root}/train"]
    assert "has one image, and data.holdout needs two or more" in refusal(load_split, dataset(named, holdout=0.5), "train")


def test_files_that_are_named_must_be_there_with_their_images(root, tmp_path):
    file = f"{root}/annotations/instances_train.json"
    assert "data.images=DIR must say where their images are" in refusal(dataset, [f"data.train={file}"])
    told = refusal(dataset, [f"data.train={tmp_path}/gone.json", f"data.images={root}"])
    assert told == f"data.train: {tmp_path}/gone.json does not exist"
    with pytest.raises(UserError, match="no such folder"):
        dataset([f"data.train={file}", f"data.images={tmp_path}/gone"])


def test_nothing_that_is_known_is_said_with_what_is(tmp_path):
    (tmp_path / "readme.txt").touch()
    told = refusal(at, tmp_path)
    assert told.startswith(f"{tmp_path}: holds no dataset in a layout that is known here\n") and "data.yaml" in told


@pytest.mark.parametrize(
    ("layout", "lacks", "told"),
    [
        ("YOLO", ["data.yaml"], "train/labels/ looks like YOLO's, but there is no data.yaml with train, val and names"),
        ("Pascal VOC", ["JPEGImages"], "Annotations/ looks like Pascal VOC's, but there is no JPEGImages/"),
        (
            "COCO files that were named",
            ["pictures"],
            "if my-train.json is a COCO file, name it with data.train and data.images",
        ),
    ],
)
def test_a_layout_that_lacks_something_is_told_what(root, tmp_path, layout, lacks, told):
    WRITERS[layout](root, tmp_path / "d")
    for name in lacks:
        path = tmp_path / "d" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert refusal(at, tmp_path / "d").splitlines()[0].endswith(told)


def test_label_studio_without_images_is_told(tmp_path):
    write_json(tmp_path / "result.json", {"images": [], "categories": [], "annotations": []})
    assert "result.json looks like Label Studio's, but there is no images/: export it with its images" in refusal(at, tmp_path)


def test_a_folder_that_holds_nothing_but_the_dataset_is_entered(root, tmp_path):
    shutil.copytree(root, tmp_path / "outer" / "inner")
    assert len(load_split(at(tmp_path / "outer"), "train").images) == 10


# File names that are not quite right


def rename(root: Path, out: Path, names: dict[str, str]) -> Path:
    """The dataset with other file names in its annotations."""
    shutil.copytree(root, out)
    for split, content in splits_of(root):
        for image in content["images"]:
            image["file_name"] = names.get(image["file_name"], image["file_name"])
        write_json(out / "annotations" / f"instances_{split}.json", content)
    return out


@pytest.mark.parametrize(
    "name", ["train/{}", "images/{}", "train\\{}", "data\\train\\{}", "./{}", "images/v1/patch2/{}"], ids=lambda name: name
)
def test_a_file_is_found_one_folder_further_up_or_without_its_folders(root, tmp_path, name):
    file = "train-003.png"
    split = load_split(at(rename(root, tmp_path / "d", {file: name.format(file)})), "train")
    assert split.images[2].path == tmp_path / "d" / "train" / file
    assert bool(split.remarks) == (name != "./{}")


def test_a_file_is_found_one_folder_further_down_with_one_line(root, tmp_path):
    shutil.copytree(root, tmp_path / "d")
    (tmp_path / "d" / "train" / "part").mkdir()
    for i in (1, 2):
        (tmp_path / "d" / "train" / f"train-00{i}.png").rename(tmp_path / "d" / "train" / "part" / f"train-00{i}.png")
    split = load_split(at(tmp_path / "d"), "train")
    assert split.images[0].path == tmp_path / "d" / "train" / "part" / "train-001.png"
    example = "train-001.png is train/part/train-001.png"
    assert split.remarks == (f"2 file_names are not in train but found in train/part: {example}",)


def test_of_two_files_that_could_be_meant_none_is_taken(root, tmp_path):
    shutil.copytree(root, tmp_path / "d")
    for folder in ("a", "b"):
        (tmp_path / "d" / "train" / folder).mkdir()
        shutil.copy(root / "train" / "train-001.png", tmp_path / "d" / "train" / folder)
    (tmp_path / "d" / "train" / "train-001.png").unlink()
    told = refusal(load_split, at(tmp_path / "d"), "train")
    assert "it could be any of train/a/train-001.png, train/b/train-001.png" in told


@pytest.mark.parametrize("name", ["../train/{}", "C:\\data\\{}", "..\\train\\{}", "/data/{}"])
def test_a_path_that_leaves_the_root_stays_refused(root, tmp_path, name):
    file = "train-003.png"
    told = refusal(load_split, at(rename(root, tmp_path / "d", {file: name.format(file)})), "train")
    assert "image 3: file_name" in told and "must stay in the image folder" in told


@pytest.mark.parametrize("name", ["TRAIN-003.PNG", "train%2D003.png", "train-003.png "])
def test_the_file_that_differs_as_label_tools_differ_is_named(root, tmp_path, name):
    told = refusal(load_split, at(rename(root, tmp_path / "d", {"train-003.png": name})), "train")
    assert "does not exist; 'train/train-003.png' does: write its name as it is" in told


def test_a_decomposed_accent_is_named_where_one_file_differs_in_it_alone(root, tmp_path):
    out = rename(root, tmp_path / "d", {"train-003.png": "caf\u00e9.png"})
    (out / "train" / "train-003.png").rename(out / "train" / "cafe\u0301.png")
    assert "does: write its name as it is" in refusal(load_split, at(out), "train")
    (out / "train" / "CAF\u00c9.png").touch()
    assert "does not exist" in (told := refusal(load_split, at(out), "train")) and "write its name" not in told


# Zip files


def packed(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def test_what_is_no_zip_file_is_refused(tmp_path):
    (tmp_path / "a.zip").write_text("no zip")
    assert "is a file, but not a zip file" in refusal(at, tmp_path / "a.zip")


def test_a_damaged_zip_file_is_refused(root, tmp_path):
    shutil.make_archive(str(tmp_path / "whole"), "zip", root)
    raw = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(raw[200:])  # its list of contents is there, and points elsewhere
    told = refusal(lambda: load_split(at(tmp_path / "cut.zip"), "train"))
    assert "cut.zip" in told and "Traceback" not in told


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "C:/evil.txt", "..\\evil.txt"])
def test_a_zip_file_that_leads_out_of_itself_is_refused(tmp_path, name):
    file = packed(tmp_path / "a.zip", {"train/x": b"", name: b"x"})
    assert "which leads out of it; pack it again without that file" in refusal(at, file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]


def test_an_entry_that_unpacks_to_far_more_is_refused(tmp_path):
    file = packed(tmp_path / "a.zip", {"annotations/instances_train.json": b" " * 70_000_000})
    assert "would unpack to 70000000, which looks like a decompression bomb" in refusal(at, file)


def test_an_encrypted_entry_is_refused(tmp_path):
    file = packed(tmp_path / "a.zip", {"train/x": b"secret"}, zipfile.ZIP_STORED)
    raw = bytearray(file.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(magic) + offset] |= 1
    file.write_bytes(raw)
    assert "train/x is encrypted; unpack it with its password and give the folder" in refusal(at, file)


def test_a_zip_file_that_windows_made_is_read(root, tmp_path):
    files = {str(p.relative_to(root)).replace("/", "\\"): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name
            file.writestr(info, content)
    assert len(load_split(at(tmp_path / "a.zip"), "train").images) == 10
    assert not check_dataset(at(tmp_path / "a.zip")).defects


def test_workers_read_a_zip_file_each_for_itself(root, tmp_path):
    shutil.make_archive(str(tmp_path / "a"), "zip", root)
    config = DataConfig(sizes=(32,), eval_size=32, max_size=64)
    loaded = []
    for where in (root, tmp_path / "a.zip"):
        data = DetectionDataset(load_split(at(where), "train"), config, 0, train=False)
        loaded.append([images.pixels for images, _ in eval_loader(data, batch_size=2, workers=2)])
    assert all(torch.equal(a, b) for a, b in zip(*loaded, strict=True)) and len(loaded[0]) == 5


# Rows and files that are spoilt


def spoilt(root: Path, tmp_path: Path, layout: str, name: str, change) -> str:
    """What is said of a layout one of whose files was changed."""
    WRITERS[layout](root, tmp_path / "d")
    file = tmp_path / "d" / name
    file.write_text(change(file.read_text()) if file.exists() else change(""))
    return refusal(lambda: [load_split(at(tmp_path / "d"), split) for split in SPLITS])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("0 0.5 0.5 0.1", "must be class x y width height, or class and the points of a polygon, got 4 numbers"),
        ("saw 0.5 0.5 0.1 0.1", "must hold numbers, got"),
        ("0 20 16 8 8", "the numbers must be shares of the image, from 0 to 1, got 20 16 8 8"),
        ("0 nan 0.5 0.1 0.1", "the numbers must be shares of the image, from 0 to 1, got nan"),
        ("1.5 0.5 0.5 0.1 0.1", "the class must be a whole number from 0 on, got 1.5"),
        ("7 0.5 0.5 0.1 0.1", 'category 7 is not in "categories"'),
        ("-1 0.5 0.5 0.1 0.1", "the class must be a whole number from 0 on, got -1"),
    ],
)
def test_a_wrong_row_of_yolo_is_told_with_file_and_line(root, tmp_path, row, told):
    said = spoilt(root, tmp_path, "YOLO", "train/labels/train-003.txt", lambda text: f"{text}\n{row}\n")
    assert f"{tmp_path}/d/train/labels/train-003.txt: image 3: " in said and told in said and "line 5" in said


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.5 0.5 0.25 0.5", [15, 8, 10, 16]),
        ("0 0.5 0.5 0.25 0.5 0.9", [15, 8, 10, 16]),  # a score, or a track
        ("0 0.1 0.2 0.3 0.2 0.3 0.6", [4, 6.4, 8, 12.8]),  # a triangle
        ("0.0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6", [4, 6.4, 8, 12.8]),  # an oriented box
    ],
)
def test_rows_of_yolo_become_boxes(root, tmp_path, line, box):
    WRITERS["YOLO"](root, tmp_path / "d")
    (tmp_path / "d" / "train" / "labels" / "train-004.txt").write_text(line)
    written = load_split(at(tmp_path / "d"), "train").written
    assert written.boxes[written.image_ids == 4].tolist() == [pytest.approx(box)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("train: train/images\nnames: [saw]\nnc: 2", "nc is 2, but names has 1"),
        ("train: train/images\nnames: {1: saw, 2: axe}", "names must be a list, or a map from 0"),
        ("train: elsewhere\nnames: [saw, axe, nut]", "'elsewhere' is not there"),
        ("names: [saw, axe, nut]", "has neither train nor val"),
        ("train: ../../../etc\nnames: [saw, axe, nut]", "'../../../etc' is not there"),
        ("train: [3]\nnames: [saw, axe, nut]", "train and val must name folders or .txt files, got 3"),
        ("- 1", "is not YAML with train, val and names"),
    ],
)
def test_a_wrong_data_yaml_is_told(root, tmp_path, content, told):
    said = spoilt(root, tmp_path, "YOLO", "data.yaml", lambda _: content)
    assert f"{tmp_path}/d/data.yaml: " in said and told in said


@pytest.mark.parametrize(
    "train",
    ["train/images", "./train/images", "list.txt", "[train/images]", "{root}/train/images"],
)
@pytest.mark.parametrize("path", ["", ".", "{root}", "/gone/with/the/wind"])
def test_paths_of_data_yaml_are_followed(root, tmp_path, train, path):
    WRITERS["YOLO"](root, tmp_path / "d")
    files = sorted((tmp_path / "d" / "train" / "images").iterdir())
    (tmp_path / "d" / "list.txt").write_text("".join(f"./train/images/{file.name}\n" for file in files))
    where = {"root": tmp_path / "d"}
    lines = [f"path: {path.format(**where)}"] if path else []
    lines += [f"train: {train.format(**where)}", "val: val/images", "names: {0: saw, 1: axe, 2: nut}"]
    (tmp_path / "d" / "data.yaml").write_text("\n".join(lines))
    assert torch.equal(load_split(at(tmp_path / "d"), "train").boxes, load_split(at(root), "train").boxes)


def test_no_format_reads_what_lies_outside(root, tmp_path, monkeypatch):
    """Not even the size of an image that a list names."""
    shutil.copy(root / "train" / "train-001.png", tmp_path / "outside.png")
    looked = []
    monkeypatch.setattr("dndetr.data.formats.reading.size_of", lambda place, exif: looked.append(str(place)) or (40, 32))
    WRITERS["metadata.jsonl"](root, tmp_path / "a")
    (tmp_path / "a" / "train" / "metadata.jsonl").write_text('{"file_name": "../../outside.png", "objects": {}}\n')
    WRITERS["YOLO"](root, tmp_path / "b")
    (tmp_path / "b" / "list.txt").write_text("../outside.png\n")
    (tmp_path / "b" / "data.yaml").write_text("train: list.txt\nnames: [saw, axe, nut]\n")
    for name in ("a", "b"):
        told = refusal(load_split, at(tmp_path / name), "train")
        assert "outside.png" in told and "leads out of the data; put the file itself there" in told
    assert not [place for place in looked if "outside" in place]


@pytest.mark.parametrize(
    ("layout", "name", "change", "told"),
    [
        ("Pascal VOC", "Annotations/train-003.xml", lambda text: text[:-20], "malformed XML"),
        ("Pascal VOC", "Annotations/train-003.xml", lambda text: text.replace("xmax", "xm"), "object 1 (saw): must have"),
        ("Pascal VOC", "Annotations/train-003.xml", lambda text: f"<!DOCTYPE x>{text}", "it declares entities"),
        ("Pascal VOC", "labelmap.txt", lambda text: text.replace("saw", "sow"), '"saw" is none of the classes'),
        ("LabelMe", "train/train-003.json", lambda text: text[:-2], "line 1, column"),
        ("LabelMe", "train/train-003.json", lambda text: text.replace('"label": "saw"', '"label": 3'), 'must have a "label"'),
        ("LabelMe", "train/train-003.json", lambda text: '{"shapes": 3}', 'it must hold an object with a list "shapes"'),
        (
            "CVAT's XML",
            "annotations.xml",
            lambda text: text.replace('xtl="', 'xtl="x', 1),
            "must have numbers for its corners",
        ),
        ("CVAT's XML", "annotations.xml", lambda text: text.replace('label="saw"', 'label="sow"', 1), "is none of the labels"),
        ("metadata.jsonl", "train/metadata.jsonl", lambda text: text + "{", "line 11: must be JSON with file_name"),
    ],
)
def test_a_spoilt_file_is_told_with_its_place(root, tmp_path, layout, name, change, told):
    said = spoilt(root, tmp_path, layout, name, change)
    assert told in said and (name if name != "labelmap.txt" else "Annotations/") in said


@pytest.mark.parametrize("layout", ["Pascal VOC", "LabelMe", "metadata.jsonl"])
def test_classes_without_a_list_are_those_of_both_splits(root, tmp_path, layout):
    """Else the validation split would number its classes otherwise, where it lacks one of them."""
    few = rename(root, tmp_path / "few", {})
    content = json.loads((few / "annotations" / "instances_val.json").read_text())
    content["annotations"] = [entry | {"category_id": 1} for entry in content["annotations"]]
    write_json(few / "annotations" / "instances_val.json", content)
    WRITERS[layout](few, tmp_path / "d")
    for name in ("labelmap.txt", "labels.txt"):
        (tmp_path / "d" / name).unlink(missing_ok=True)
    for file in (tmp_path / "d").rglob("metadata.jsonl"):
        file.write_text(
            re.sub(r'"categories": \[(.*?)\]', lambda m: f'"categories": [{named_classes(m[1])}]', file.read_text())
        )
    train = load_split(at(tmp_path / "d"), "train")
    assert train.categories.names == ("axe", "nut", "saw")
    assert set(load_split(at(tmp_path / "d"), "val", train.categories).labels.tolist()) == {2}


def named_classes(numbers: str) -> str:
    return ", ".join(f'"{CLASSES[int(number)]}"' for number in numbers.split(", ") if number)


def test_voc_beside_its_images_is_found(root, tmp_path):
    """As Roboflow exports it."""
    WRITERS["Pascal VOC"](root, tmp_path / "voc")
    for split, folder in (("train", "train"), ("val", "valid")):
        shutil.copytree(root / split, tmp_path / "d" / folder)
        for file in (tmp_path / "voc" / "Annotations").glob(f"{split}-*.xml"):
            shutil.copy(file, tmp_path / "d" / folder)
    assert at(tmp_path / "d").line == f"{tmp_path}/d, Pascal VOC: train and valid"
    assert torch.equal(load_split(at(tmp_path / "d"), "val").boxes, load_split(at(root), "val").boxes)


def test_difficult_objects_of_voc_are_marked(root, tmp_path):
    WRITERS["Pascal VOC"](root, tmp_path / "d")
    file = tmp_path / "d" / "Annotations" / "train-001.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    objects = at(tmp_path / "d").annotations("train").objects
    assert [item.ignore for item in objects if item.image_id == 1] == [True]
    assert not any(item.ignore for item in objects if item.image_id != 1)


def test_images_without_a_file_have_no_objects_and_are_counted(root, tmp_path):
    WRITERS["LabelMe"](root, tmp_path / "d")
    (tmp_path / "d" / "train" / "train-001.json").unlink()
    split = load_split(at(tmp_path / "d"), "train")
    assert len(split.objects(1)) == 0 and len(split.images) == 10
    assert "1 image has no .json, and count as without objects" in split.remarks


def test_voc_lies_in_voc_devkit_too(root, tmp_path):
    WRITERS["Pascal VOC"](root, tmp_path / "VOCdevkit" / "VOC2007")
    assert len(load_split(at(tmp_path), "train").images) == 10
    shutil.copytree(tmp_path / "VOCdevkit" / "VOC2007", tmp_path / "VOCdevkit" / "VOC2012")
    assert "VOCdevkit/VOC2007 and VOCdevkit/VOC2012 could both be the dataset" in refusal(at, tmp_path)


@pytest.mark.parametrize("layout", ["YOLO", "Pascal VOC"])
def test_another_reader_has_the_same_boxes(root, tmp_path, layout):
    """supervision reads these two exactly; it gives VOC's classes in the order of the alphabet."""
    sv = pytest.importorskip("supervision", reason="pip install supervision, 458 MB, to compare with it")
    out = tmp_path / "d"
    WRITERS[layout](root, out)
    if layout == "YOLO":
        images, labels = out / "train" / "images", out / "train" / "labels"
        theirs = sv.DetectionDataset.from_yolo(str(images), str(labels), str(out / "data.yaml"))
    else:
        theirs = sv.DetectionDataset.from_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations"))
    ours = at(out).annotations("train")
    for image in ours.images.values():
        path = next(path for path in theirs.image_paths if Path(path).name == Path(image.file_name).name)
        found = theirs.annotations[path]
        x0, y0, x1, y1 = found.xyxy.T.tolist() if len(found) else ([], [], [], [])
        rows = zip(x0, y0, x1, y1, [theirs.classes[c] for c in found.class_id], strict=True)
        mine = [(*item.box, ours.categories[item.category_id]) for item in ours.objects if item.image_id == image.id]
        for (a, b, c, d, name), (x, y, w, h, mine_name) in zip(sorted(rows), sorted(mine), strict=True):
            assert name == mine_name and [x, y, x + w, y + h] == pytest.approx([a, b, c, d], abs=0.01)


# Layouts that are COCO's or YOLO's with other names


def test_lvis_has_its_file_names_in_an_address(root, tmp_path):
    """Images of its validation split may lie in train2017."""
    shutil.copytree(root / "train", tmp_path / "train2017")
    for split, content in splits_of(root):
        shutil.copytree(root / split, tmp_path / "train2017", dirs_exist_ok=True)
        for picture in content["images"]:
            picture["coco_url"] = f"http://images.cocodataset.org/train2017/{picture.pop('file_name')}"
        write_json(tmp_path / "annotations" / f"lvis_v1_{split}.json", content)
    found = at(tmp_path)
    assert ", LVIS: annotations/lvis_v1_train.json and annotations/lvis_v1_val.json" in found.line
    assert load_split(found, "val").images[0].path == tmp_path / "train2017" / "val-001.png"


def test_objects365_keeps_the_last_parts_of_its_paths(root, tmp_path):
    for split, content in splits_of(root):
        shutil.copytree(root / split, tmp_path / split / "patch7")
        for picture in content["images"]:
            picture["file_name"] = f"images/v1/patch7/{picture['file_name']}"
        write_json(tmp_path / "annotations" / f"zhiyuan_objv2_{split}.json", content)
    found = at(tmp_path)
    assert ", Objects365: " in found.line
    assert load_split(found, "train").images[0].path == tmp_path / "train" / "patch7" / "train-001.png"


def test_yolo_without_a_yaml_takes_its_classes_from_a_list(root, tmp_path):
    """As Label Studio exports it."""
    WRITERS["YOLO"](root, tmp_path / "d")
    shutil.copytree(tmp_path / "d" / "train", tmp_path / "one")
    (tmp_path / "one" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    split = load_split(at(tmp_path / "one"), "train")
    assert torch.equal(split.boxes, load_split(at(root), "train").boxes) and split.categories.names == CLASSES


def test_cvat_s_default_subset_is_one_set_of_images(root, tmp_path):
    shutil.copytree(root / "train", tmp_path / "images" / "default")
    shutil.copytree(root / "annotations", tmp_path / "annotations")
    (tmp_path / "annotations" / "instances_val.json").unlink()
    (tmp_path / "annotations" / "instances_train.json").rename(tmp_path / "annotations" / "instances_default.json")
    assert at(tmp_path).line == f"{tmp_path}, CVAT's COCO export: annotations/instances_default.json"
    assert len(load_split(at(tmp_path), "train").images) == 10


def test_rotated_boxes_of_cvat_become_their_upright_extent(root, tmp_path):
    WRITERS["CVAT's XML"](root, tmp_path / "d")
    file = tmp_path / "d" / "annotations.xml"
    box = 'xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"'
    text = re.sub(r'(<image id="0".*?<box label="\w+" )xtl=.*?(occluded)', rf"\1{box} \2", file.read_text(), count=1)
    file.write_text(text)
    written = load_split(at(tmp_path / "d"), "train")
    assert written.written.boxes[0].tolist() == pytest.approx([13, 7, 4, 10])
    assert "of rotated boxes, 1, the upright extent is taken" in written.remarks


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"points": [[5, 6], [9, 2], [7, 12]], "shape_type": "polygon"}, [5, 2, 4, 10]),
        ({"points": [[10, 10], [13, 14]], "shape_type": "circle"}, [5, 5, 10, 10]),
        ({"points": [[9, 9], [3, 4]], "shape_type": "rectangle"}, [3, 4, 6, 5]),
        ({"points": [[9, 9]], "shape_type": "point"}, None),
        ({"points": [[9, 9], [3, 4]], "shape_type": "line"}, None),
    ],
)
def test_shapes_of_labelme_become_their_extent(root, tmp_path, shape, box):
    WRITERS["LabelMe"](root, tmp_path / "d")
    file = tmp_path / "d" / "train" / "train-004.json"
    content = json.loads(file.read_text()) | {"shapes": [{"label": "saw", **shape}]}
    write_json(file, content)
    split = load_split(at(tmp_path / "d"), "train")
    assert split.written.boxes[split.written.image_ids == 4].tolist() == ([] if box is None else [pytest.approx(box)])
    assert ("points and lines are no objects here: 1 shapes passed over" in split.remarks) == (box is None)
