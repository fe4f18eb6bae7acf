"""Any dataset in COCO 2017's layout: what stays, what is left behind, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data.coco import Categories, load_split
from dndetr.data.convert import convert
from dndetr.data.layouts import find_dataset
from dndetr.data.store import Entry
from tests.data.coco_files import at, image, item, write_split


def converted(root: Path, out: Path) -> dict:
    """The training annotations that converting `root` writes."""
    convert(at(root), out)
    return json.loads((out / "annotations" / "instances_train2017.json").read_text())


def mixed(root: Path) -> Path:
    """Crowds, areas with and without value, boxes outside of the image or empty, ids in no order, one image in a folder."""
    annotations = [
        item(9, 5, [-3, 2.25, 30.5, 10], category=7, area=0),
        item(4, 8, [0, 0, 40, 20], iscrowd=1, area=123.5),
        item(2, 5, [1, 1, 0, 5], ignore=1),
        {"id": 3, "image_id": 8, "category_id": 7, "bbox": [1, 2, 3, 4.5]},
        {"id": 7, "image_id": 8, "category_id": 7, "bbox": [1, 2, -3, 4]},  # whose area could not be written
    ]
    write_split(root, "val", [image(3)], [item(1, 3, [0, 0, 2, 2])])
    (root / "train" / "deep").mkdir(parents=True)
    return write_split(root, "train", [image(8), image(5, file_name="deep/5.png")], annotations)


def test_everything_stays_as_it_is_written(tmp_path):
    root, out = mixed(tmp_path / "data"), tmp_path / "out"
    content = converted(root, out)
    assert content["images"] == [image(8), image(5, file_name="deep/5.png")]
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(7, "dog"), (3, "cat")]
    written = json.loads((root / "annotations" / "instances_train.json").read_text())["annotations"]
    written[3] |= {"iscrowd": 0, "area": 13.5}  # the box's, as in counting
    written[4] |= {"iscrowd": 0}
    assert content["annotations"] == written


def test_a_converted_dataset_is_read_as_the_one_that_it_was_made_of(tmp_path):
    root, out = mixed(tmp_path / "data"), tmp_path / "out"
    convert(at(root), out)
    for split in ("train", "val"):
        before, after = load_split(at(root), split), load_split(at(out), split)
        assert after.categories == before.categories == Categories((3, 7), ("cat", "dog"))
        assert after.spans == before.spans
        assert after.labels.equal(before.labels) and after.boxes.equal(before.boxes)
        assert all(np.array_equal(a, b) for a, b in zip(after.written, before.written, strict=True))
        for one, other in zip(before.images, after.images, strict=True):
            assert (one.id, one.width, one.height) == (other.id, other.width, other.height)
            assert one.path.read_bytes() == other.path.read_bytes()
    again = tmp_path / "again"
    convert(at(out), again)
    for file in (path for path in out.rglob("*") if path.is_file()):
        assert (again / file.relative_to(out)).read_bytes() == file.read_bytes(), file


def test_coco_s_own_tools_open_it(tmp_path, capsys):
    root = write_split(tmp_path / "data", "train", [image(1)], [item(1, 1, [0, 0, 9, 9], iscrowd=1, area=81)])
    converted(root, tmp_path / "out")
    coco = COCO(tmp_path / "out" / "annotations" / "instances_train2017.json")
    assert coco.getAnnIds(iscrowd=True, areaRng=[80, 82]) == [1]


def as_yolo(root: Path, boxes: dict[str, list[tuple]]) -> Path:
    """The boxes (class, x, y, width, height) of each image as YOLO has them, with six digits."""
    for name, rows in boxes.items():
        picture, labels = root / "images" / f"{name}.png", root / "labels" / f"{name}.txt"
        picture.parent.mkdir(parents=True, exist_ok=True)
        labels.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (640, 480), "grey").save(picture)
        rows = [(c, (x + w / 2) / 640, (y + h / 2) / 480, w / 640, h / 480) for c, x, y, w, h in rows]
        labels.write_text("".join(f"{c} {' '.join(f'{v:.6f}' for v in row)}\n" for c, *row in rows))
    (root / "data.yaml").write_text("train: images/train\nnames: [worm, ant]\n")
    return root


def test_boxes_of_yolo_stay_to_a_hundredth_of_a_pixel(tmp_path):
    rows = [(1, 10.33, 20.71, 100.17, 55.5), (0, 0, 0, 640, 480)]
    content = converted(as_yolo(tmp_path / "data", {"train/a": rows, "train/more/a": []}), tmp_path / "out")
    assert [entry["file_name"] for entry in content["images"]] == ["a.png", "more/a.png"]
    assert [(entry["width"], entry["height"]) for entry in content["images"]] == [(640, 480)] * 2
    assert [c["name"] for c in content["categories"]] == ["worm", "ant"]
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert [names[entry["category_id"]] for entry in content["annotations"]] == ["ant", "worm"]
    for entry, (_, *box) in zip(content["annotations"], rows, strict=True):
        assert entry["bbox"] == pytest.approx(box, abs=0.01)
        assert entry["area"] == pytest.approx(box[2] * box[3], rel=1e-3)
    assert not (tmp_path / "out" / "val2017").exists()
    assert [path.name for path in (tmp_path / "out" / "annotations").iterdir()] == ["instances_train2017.json"]


def test_real_boxes_stay_on_the_way_to_yolo_and_back(tmp_path, real):
    split = load_split(at(real("bccd")), "val")
    boxes = {
        f"val/{record.path.stem}": [
            (label, (x - w / 2) * 640, (y - h / 2) * 480, w * 640, h * 480)
            for label, (x, y, w, h) in zip(
                *(values.tolist() for values in vars(split.objects(record.id)).values()), strict=True
            )
        ]
        for record in split.images
    }
    root = as_yolo(tmp_path / "data", boxes)
    (root / "data.yaml").write_text(f"train: images/val\nnames: {json.dumps(split.categories.names)}\n")
    content = converted(root, tmp_path / "out")
    back = {Path(entry["file_name"]).stem: entry["id"] for entry in content["images"]}
    assert len(content["annotations"]) == len(split.labels) > 900
    for name, rows in boxes.items():
        found = [a["bbox"] for a in content["annotations"] if a["image_id"] == back[Path(name).name]]
        assert np.allclose(found, [row[1:] for row in rows], atol=0.01)


def test_all_images_in_one_folder_below_the_split_s_own(tmp_path):
    (tmp_path / "data" / "train" / "deep").mkdir(parents=True)
    root = write_split(tmp_path / "data", "train", [image(1, file_name="deep/1.png")], [])
    assert converted(root, tmp_path / "out")["images"][0]["file_name"] == "deep/1.png"
    assert (tmp_path / "out" / "train2017" / "deep" / "1.png").is_file()


def test_images_that_lie_elsewhere_have_names_below_the_folder_of_all(tmp_path):
    """As in LVIS, whose images lie in COCO's folders of both splits."""
    for folder in ("train2017", "val2017"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(tmp_path / "data" / folder / "1.png")
    folders = enumerate(("train2017", "val2017"))
    images = [{"id": i, "coco_url": f"http://x/{folder}/1.png", "width": 40, "height": 20} for i, folder in folders]
    (tmp_path / "data" / "annotations").mkdir()
    content = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "data" / "annotations" / "lvis_v1_train.json").write_text(json.dumps(content))
    names = [entry["file_name"] for entry in converted(tmp_path / "data", tmp_path / "out")["images"]]
    assert names == ["train2017/1.png", "val2017/1.png"]


def test_a_zip_file_becomes_what_its_folder_becomes(tmp_path):
    root = mixed(tmp_path / "data")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "data"))
    assert isinstance(at(archive).annotations("train").place(at(archive).annotations("train").images[8]), Entry)
    assert converted(archive, tmp_path / "zip") == converted(root, tmp_path / "folder")
    assert (tmp_path / "zip" / "train2017" / "deep" / "5.png").read_bytes() == (root / "train" / "deep" / "5.png").read_bytes()


def test_held_out_images_become_the_validation_split(tmp_path):
    root = write_split(
        tmp_path / "data", "train", [image(i) for i in range(1, 11)], [item(i, i, [0, 0, 4, 4]) for i in range(1, 11)]
    )
    dataset = find_dataset(DataConfig(root=str(root), holdout=0.3))
    convert(dataset, tmp_path / "out")
    ids = [[record.id for record in load_split(at(tmp_path / "out"), split).images] for split in ("train", "val")]
    assert ids == [[record.id for record in load_split(dataset, split).images] for split in ("train", "val")]
    assert len(ids[1]) == 3 and len(list((tmp_path / "out" / "val2017").iterdir())) == 3


def test_what_the_command_says(tmp_path, main):
    outline = [[0, 0, 4, 0, 4, 4]]
    annotations = [
        item(1, 1, [0, 0, 4, 4], segmentation=outline),
        item(2, 1, [0, 0, 4, 4], segmentation=[]),
        item(3, 1, [0, 0, 1, 1]),
    ]
    root = write_split(tmp_path / "data", "train", [image(1)], annotations)
    out = tmp_path / "an out"
    done = main("data", "convert", root, "--to", out)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "1 mask was left behind: only boxes are used",
        f"{out}: 1 training images with 3 objects, from the plain COCO layout; next: dndetr data check '{out}'",
    ]
    assert "--to" in main("data", "convert", root).err


def test_nothing_is_overwritten(tmp_path, main):
    root, out = mixed(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    done = main("data", "convert", root, "--to", out)
    assert (done.code, done.err) == (2, f"{out}: is not an empty folder; remove it or choose another place\n")
    assert [path.name for path in out.iterdir()] == ["mine"]
    done = main("data", "convert", root, "--to", root / "out")
    assert done.err == f"{root / 'out'}: lies in the dataset that is converted, {root}; choose a place outside\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_defects_refuse_as_in_training(tmp_path):
    root = write_split(tmp_path / "data", "train", [image(1)], [item(1, 1, [0, 0, 4, 4], category=99)])
    with pytest.raises(UserError, match=r"annotation 1: category 99 is not in .categories.*\n1 defect; see them all"):
        convert(at(root), tmp_path / "out")
    write_split(root, "train", [image(1)], [])
    write_split(root, "val", [image(1)], [], [{"id": 3, "name": "cow"}])
    with pytest.raises(UserError, match="category 3 is cow, but was trained as cat"):
        convert(at(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    root, read = mixed(tmp_path / "data"), Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.suffix == ".png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="8.png: cannot be read: Permission denied; mend or remove it, and its annotations"):
        convert(at(root), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    root = mixed(tmp_path / "data")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError) as caught:
        convert(at(root), tmp_path / "out")
    assert (
        str(caught.value) == f"{tmp_path / 'out'}: cannot be written: No space left on device; choose another place with --to"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
