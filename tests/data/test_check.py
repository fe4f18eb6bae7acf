import pytest
from PIL import Image

from dndetr.console import UserError
from dndetr.data import annotations as kinds
from dndetr.data.check import Counts, check_dataset, lines
from tests.data.coco_files import CATEGORIES, at, image, item, write_annotations, write_split


def found(root, **options) -> list[tuple]:
    return [(d.kind, d.image_id, d.annotation_id) for d in check_dataset(at(root), **options).defects]


def sound(root):
    write_split(root, "train", [image(1)], [item(1, 1, [0, 0, 5, 5])])
    return write_split(root, "val", [image(1)], [item(1, 1, [0, 0, 5, 5])])


def test_counts(tmp_path):
    sound(tmp_path)
    annotations = [item(i, 1, [10 * i, 0, 10, 10], category=7) for i in (1, 2, 3)]
    annotations += [item(4, 2, [0, 0, 36, 40]), item(5, 2, [0, 0, 5, 5], iscrowd=1), item(6, 2, [0, 0, 5, 0])]
    write_split(tmp_path, "train", [image(1), image(2, 50, 60), image(3)], annotations)
    report = check_dataset(at(tmp_path))
    assert report.splits["train"] == Counts(
        images=3,
        with_objects=2,
        objects=4,
        crowds=1,
        most_objects=3,
        of_class={"cat": 1, "dog": 3},
        of_size={"small": 3, "medium": 1, "large": 0},
        sides=(10.0, 10.0, pytest.approx(37.947, abs=1e-3)),
        pictures=((40, 50), (20, 60)),
    )
    assert report.splits["val"].objects == 1
    assert [(d.kind, d.image_id, d.annotation_id) for d in report.defects] == [(kinds.EMPTY_BOX, 2, 6)]


def test_no_defects(tmp_path):
    assert lines(check_dataset(at(sound(tmp_path)), queries=1))[-1] == "no defects"


def test_every_kind_of_defect(tmp_path):
    sound(tmp_path)
    images = [image(1), image(2), image(2), image(3), image(4), image(5), image(6, file_name="../6.png"), image(7, width="40")]
    annotations = [
        item(1, 1, [0, 0, 5, 5]),
        item(2, 1, [5, 0, 5, 5]),
        item(3, 1, [9, 0, 5, 5]),
        item(3, 1, [9, 0, 5, 5]),
        item(4, 1, [0, 0, 5, 5], category=99),
        item(5, 99, [0, 0, 5, 5]),
        item(6, 2, [30, 0, 12, 5]),
        item(7, 2, [30, 0, 0, 5]),
        item(8, 2, [0, 0, float("inf"), 5]),
        item(9, 2, [0, 0, 5, "5"]),
        item(10, 2, None),
        {"id": 11, "image_id": 2, "bbox": [0, 0, 5, 5]},
        item(12, 2, [0, 0, 5, 5], iscrowd="no"),
        {"image_id": 2},
        "annotation",
        item(13, 2, [0, 0, 10**400, 5]),
    ]
    write_split(tmp_path, "train", images, annotations)
    (tmp_path / "train" / "3.png").unlink()
    (tmp_path / "train" / "4.png").write_bytes(b"broken")
    Image.new("RGB", (7, 7)).save(tmp_path / "train" / "5.png")
    assert found(tmp_path, queries=2) == [
        (kinds.DUPLICATE, 2, None),
        (kinds.BAD_PATH, 6, None),
        (kinds.WRONG_TYPE, 7, None),
        (kinds.DUPLICATE, 1, 3),
        (kinds.UNKNOWN_CATEGORY, 1, 4),
        (kinds.UNKNOWN_IMAGE, 99, 5),
        (kinds.OUTSIDE, 2, 6),
        (kinds.EMPTY_BOX, 2, 7),
        (kinds.NON_FINITE, 2, 8),
        (kinds.WRONG_TYPE, 2, 9),
        (kinds.WRONG_TYPE, 2, 10),
        (kinds.MISSING_KEY, 2, 11),
        (kinds.WRONG_TYPE, 2, 12),
        (kinds.MISSING_KEY, None, None),
        (kinds.WRONG_TYPE, None, None),
        (kinds.WRONG_TYPE, 2, 13),
        (kinds.NO_IMAGE, 3, None),
        (kinds.TOO_MANY, 1, None),
        (kinds.UNREADABLE, 4, None),
        (kinds.WRONG_SIZE, 5, None),
    ]


def test_boxes_may_leave_by_a_pixel(tmp_path):
    sound(tmp_path)
    write_split(tmp_path, "train", [image(1)], [item(1, 1, [-0.9, 0, 10, 20.9]), item(2, 1, [30, -1.1, 5, 5])])
    assert found(tmp_path) == [(kinds.OUTSIDE, 1, 2)]


def test_splits_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        found(tmp_path / "nowhere")
    write_split(tmp_path, "train", [image(1)], [item(1, 1, [0, 0, 5, 5])])
    report = check_dataset(at(tmp_path))
    assert list(report.splits) == ["train"] and "has no validation split" in report.defects[0].message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"images": 1, "annotations": {}, "categories": null}'])
def test_malformed_files_never_raise(tmp_path, text):
    sound(tmp_path)
    write_annotations(tmp_path, "val", text)
    report = check_dataset(at(tmp_path))
    assert report.splits["train"].objects == 1 and report.splits["val"].images == 0
    assert report.defects and all(defect.file.endswith("instances_val.json") for defect in report.defects)
    assert all(isinstance(line, str) for line in lines(report))


def test_categories_of_the_splits_must_agree(tmp_path):
    sound(tmp_path)
    other = [{"id": 3, "name": "cow"}, {"id": 8, "name": "hen"}]
    write_split(tmp_path, "val", [image(1)], [item(1, 1, [0, 0, 5, 5])], other)
    report = check_dataset(at(tmp_path))
    assert [defect.message for defect in report.defects] == ["category 3 is cow, but was trained as cat"]
    assert "val: 1 category without objects, left out since training has none such: hen" in report.remarks
    write_split(tmp_path, "val", [image(1)], [item(i, 1, [i, 0, 5, 5], category=8) for i in range(2)], other)
    told = "category 8 (hen) is not among the 2 that were trained, and 2 objects have it"
    assert [defect.message for defect in check_dataset(at(tmp_path)).defects][-1] == told
    assert {entry["id"] for entry in CATEGORIES} == {3, 7}


def test_classes_of_one_name_are_counted_apart(tmp_path):
    twins = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 9, "name": "a"}]
    annotations = [item(i, 1, [i, 0, 5, 5], category=1 if i < 7 else 9) for i in range(16)]
    for split in ("train", "val"):
        write_split(tmp_path, split, [image(1)], annotations, twins)
    report = check_dataset(at(tmp_path))
    assert "  3 classes: a 7, b 0, a (9) 9" in lines(report)
    assert {defect.kind for defect in report.defects} == {kinds.TWINS} and len(report.defects) == 2
    assert report.remarks == ["train: 1 of the 3 classes has no object to train on: b"]


def test_a_group_is_said_once_and_is_no_defect(tmp_path):
    grouped = [entry | {"supercategory": "things"} for entry in CATEGORIES] + [{"id": 0, "name": "things"}]
    objects = [item(i, 1, [0, 0, 5, 5], category=i) for i in (3, 7)]
    for split in ("train", "val"):
        write_split(tmp_path, split, [image(1)], objects, grouped)
    report = check_dataset(at(tmp_path))
    assert not report.defects
    assert report.splits["val"].of_class == {"cat": 1, "dog": 1}
    assert report.remarks == ["train and val: category 0 (things) only groups others and has no object: it is no class"]


def test_as_text(tmp_path):
    sound(tmp_path)
    write_split(tmp_path, "train", [image(1)], [item(i, 1, [0, 0, 5, 0]) for i in range(5)])
    text = lines(check_dataset(at(tmp_path)), most=2)
    assert "train: 1 images, 0 with objects, 1 without" in text
    assert text[-4] == "5 defects: empty box 5"
    assert text[-3].startswith(
        f"  empty box: {tmp_path}/annotations/instances_train.json: image 1: annotation 0: bbox [0, 0, 5, 0]"
    )
    assert text[-1] == "  ... and 3 more"


def test_progress_is_tracked(tmp_path):
    tracked = []
    check_dataset(at(sound(tmp_path)), track=lambda images: tracked.extend(images) or images)
    assert [entry.id for entry in tracked] == [1, 1]


@pytest.mark.parametrize("name, most, crowds, repeated", [("bccd", 30, 0, 7), ("coco-open", 34, 9, 0)])
def test_real_data(real, name, most, crowds, repeated):
    report = check_dataset(at(real(name)), queries=100)
    assert [d.kind for d in report.defects] == [kinds.REPEATED] * repeated  # seen: seven cells have two boxes
    assert report.splits["train"].most_objects == most and report.splits["train"].crowds == crowds
