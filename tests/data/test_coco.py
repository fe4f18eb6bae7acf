import json
from dataclasses import asdict

import pytest
import torch

from dndetr.console import UserError
from dndetr.data.coco import Categories, load_split
from tests.data.coco_files import at, image, item, write_annotations, write_split


def refusal(root, split="train", **options) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        load_split(at(root), split, **options)
    return caught.value.lines


@pytest.mark.parametrize("suffix", ["", "2017"])
def test_both_layouts(tmp_path, suffix):
    write_split(tmp_path, f"val{suffix}", [image(1)], [])
    dataset = at(tmp_path)
    assert list(dataset.sources) == ["val"]
    assert dataset.sources["val"].name == f"annotations/instances_val{suffix}.json"
    assert load_split(dataset, "val", Categories((3, 7), ("cat", "dog"))).images[0].path == tmp_path / f"val{suffix}" / "1.png"


def test_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        at(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no dataset in a layout that is known here.*\n.*instances_train.json"):
        at(tmp_path)
    write_annotations(tmp_path, "train", "{}")
    assert f"no folder {tmp_path}/train" in refusal(tmp_path)[0]


def test_objects_in_the_detector_s_terms(tmp_path):
    """Categories by ascending id, boxes as cxcywh of the image, no crowds; images without boxes stay."""
    annotations = [
        item(1, 5, [10, 5, 20, 10], category=7),
        item(2, 9, [0, 0, 40, 20], category=3),
        item(3, 5, [0, 0, 4, 2], category=3),
        item(4, 5, [0, 0, 40, 20], iscrowd=1),
    ]
    split = load_split(at(write_split(tmp_path, "train", [image(5), image(9), image(2)], annotations)), "train")
    assert split.categories == Categories((3, 7), ("cat", "dog"))
    assert split.categories.labels == {3: 0, 7: 1}
    assert [record.id for record in split.images] == [5, 9, 2]
    assert split.images[1].path == tmp_path / "train" / "9.png"
    assert split.objects(5).labels.tolist() == [1, 0]
    torch.testing.assert_close(split.objects(5).boxes, torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.05, 0.05, 0.1, 0.1]]))
    assert split.objects(9).labels.tolist() == [0]
    assert len(split.objects(2)) == 0 and split.objects(2).boxes.shape == (0, 4)
    assert split.most_objects == 2


def test_boxes_are_clipped_and_empty_ones_dropped(tmp_path):
    boxes = [[-10, -10, 30, 20], [30, 10, 0, 5], [30, 10, 5, -1], [41, 5, 3, 3], [30, 10, 20, 20]]
    annotations = [item(i, 1, box) for i, box in enumerate(boxes)]
    split = load_split(at(write_split(tmp_path, "train", [image(1)], annotations)), "train")
    torch.testing.assert_close(split.objects(1).boxes, torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.875, 0.75, 0.25, 0.5]]))


def test_categories_of_one_name_are_classes_of_their_own(tmp_path):
    """As in exports that name a category like its parent."""
    twins = [{"id": 0, "name": "fish"}, {"id": 1, "name": "fish"}]
    root = write_split(tmp_path, "train", [image(1)], [item(1, 1, [0, 0, 9, 9], category=1)], twins)
    split = load_split(at(root), "train")
    assert split.categories == Categories((0, 1), ("fish", "fish (1)"))
    assert split.objects(1).labels.tolist() == [1]
    (defect,) = at(root).annotations("train").defects
    told = "category 1 is named 'fish' like category 0, and called 'fish (1)' here; give each its own name"
    assert defect.message == told
    write_split(tmp_path, "val", [image(1)], [item(1, 1, [0, 0, 9, 9], category=1)], twins)
    assert load_split(at(root), "val", split.categories).objects(1).labels.tolist() == [1]


@pytest.mark.parametrize(
    "written, names",
    [
        ({1: "a", 2: "b", 9: "a"}, ("a", "b", "a (9)")),
        ({9: "a", 2: "b", 1: "a"}, ("a", "b", "a (9)")),
        ({1: "a", 2: "a (9)", 9: "a"}, ("a", "a (9)", "a (9) (9)")),
        ({1: "a", 9: "a", 12: "a (9)"}, ("a", "a (9) (9)", "a (9)")),
        ({1: "a", 2: "a", 3: "a"}, ("a", "a (2)", "a (3)")),
    ],
)
def test_every_class_has_a_name_of_its_own(written, names):
    assert Categories.named(written) == Categories(tuple(sorted(written)), names)


def test_the_written_name_of_a_class_is_known():
    twins = Categories.named({1: "a", 2: "b (2)", 9: "a"})
    assert twins.written == ("a", "b (2)", "a")
    assert twins.knows(9, "a") and twins.knows(9, "a (9)") and not twins.knows(2, "a") and not twins.knows(3, "a")


GROUPED = [
    {"id": 0, "name": "cell", "supercategory": "none"},
    {"id": 1, "name": "cell", "supercategory": "cell"},
    {"id": 2, "name": "dirt", "supercategory": "cell"},
]


def test_a_category_that_only_groups_others_is_no_class(tmp_path):
    """Roboflow writes one, and often with the name of a class in it."""
    write_split(tmp_path, "train", [image(1)], [item(1, 1, [0, 0, 9, 9], category=2)], GROUPED)
    root = write_split(tmp_path, "val", [image(1)], [item(1, 1, [0, 0, 9, 9], category=1)], GROUPED)
    train, told = load_split(at(root), "train"), "category 0 (cell) only groups others and has no object: it is no class"
    assert train.categories == Categories((1, 2), ("cell", "dirt"))
    assert train.remarks == (told, "1 of the 2 classes has no object to train on: cell")
    val = load_split(at(root), "val", train.categories)
    assert val.objects(1).labels.tolist() == [0] and val.remarks == (told,)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_group_with_an_object_in_either_split_is_a_class(tmp_path, split):
    for name in ("train", "val"):
        category = 0 if name == split else 1
        write_split(tmp_path, name, [image(1)], [item(1, 1, [0, 0, 9, 9], category=category)], GROUPED)
    for name in ("train", "val"):
        assert load_split(at(tmp_path), name).categories.names == ("cell", "cell (1)", "dirt")


def test_a_category_in_a_group_of_its_own_name_is_a_class(tmp_path):
    """As person in COCO, of which some subsets have no object."""
    people = [{"id": i, "name": name, "supercategory": "person"} for i, name in ((1, "person"), (2, "child"))]
    root = write_split(tmp_path, "train", [image(1)], [item(1, 1, [0, 0, 9, 9], category=2)], people)
    assert load_split(at(root), "train").categories.names == ("person", "child")


def test_classes_without_a_training_object_are_named_the_first_of_many(tmp_path):
    many = [{"id": i, "name": f"c{i}"} for i in range(20)]
    crowd = item(2, 1, [0, 0, 9, 9], category=4, iscrowd=1)
    root = write_split(tmp_path, "train", [image(1)], [item(1, 1, [0, 0, 9, 9], category=3), crowd], many)
    told = "19 of the 20 classes have no object to train on: c0, c1, c2, c4, c5, c6, c7, c8, ..."
    assert load_split(at(root), "train").remarks == (told,)
    write_split(root, "val", [image(1)], [item(1, 1, [0, 0, 9, 9], category=3)], many)
    assert load_split(at(root), "val").remarks == ()


def test_every_defect_with_its_place(tmp_path):
    images = [image(1), image(1), image(2, file_name="gone.jpg"), {"id": 3, "width": 4, "height": 4}]
    annotations = [
        item(1, 1, [0, 0, 5, 5]),
        item(1, 1, [0, 0, 5, 5]),
        item(2, 1, [0, 0, 5, 5], category=8),
        item(3, 77, [0, 0, 5, 5]),
        item(4, 1, [0, float("nan"), 5, 5]),
        item(5, 1, [0, 0, 5]),
        {"id": 6, "image_id": 1, "category_id": 3},
        item(7, 3, [0, 0, 5, 5]),  # its image is defective: said once, there
    ]
    lines = refusal(write_split(tmp_path, "train", images, annotations))
    file = tmp_path / "annotations" / "instances_train.json"
    assert lines == (
        f"{file}: image 1: id 1 appears again (images[1]); ids must be unique in the file",
        f'{file}: image 3: has no "file_name" (images[3])',
        f"{file}: image 1: annotation 1: id 1 appears again (annotations[1]); ids must be unique in the file",
        f'{file}: image 1: annotation 2: category 8 is not in "categories" (annotations[2])',
        f'{file}: image 77: annotation 3: image 77 is not in "images" (annotations[3])',
        f"{file}: image 1: annotation 4: bbox and area must be finite, got [0, NaN, 5, 5] (annotations[4])",
        f"{file}: image 1: annotation 5: bbox must be [x, y, width, height], got [0, 0, 5] (annotations[5])",
        f'{file}: image 1: annotation 6: has no "bbox" (annotations[6])',
        f"{file}: image 2: {tmp_path}/train/gone.jpg does not exist",
        f"9 defects; see them all with: dndetr data check {tmp_path}",
    )


def test_the_first_ten_and_a_count(tmp_path):
    annotations = [item(i, 1, [0, 0, 5, 5], category=8) for i in range(15)]
    lines = refusal(write_split(tmp_path, "train", [image(1)], annotations))
    assert len(lines) == 12
    assert lines[10:] == ("... and 5 more", f"15 defects; see them all with: dndetr data check {tmp_path}")


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"images": [],\n "annotations": [}', "line 2, column 18: malformed JSON"),
        ("[]", "is not COCO"),
        ("[" * 100_000, "cannot be read"),
        ('{"images": {}, "annotations": [], "categories": []}', '"images" must be a list'),
        ('{"images": [], "annotations": []}', 'has no "categories"'),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\] must be an object"),
        ('{"images": [{"id": "a"}], "annotations": [], "categories": []}', "id must be a whole number"),
        ('{"images": [{"id": true}], "annotations": [], "categories": []}', "id must be a whole number"),
        ('{"images": [], "annotations": [], "categories": []}', '"images" is empty'),
    ],
)
def test_malformed_files(tmp_path, text, said):
    (tmp_path / "train").mkdir()
    write_annotations(tmp_path, "train", text)
    with pytest.raises(UserError, match=said):
        load_split(at(tmp_path), "train")


def test_not_text(tmp_path):
    root = write_split(tmp_path, "train", [image(1)], [])
    (root / "annotations" / "instances_train.json").write_bytes(b'{"images":\n "\xff"}')
    assert "line 2: not text: byte 0xff" in refusal(root)[0]


@pytest.mark.parametrize("name", ["../1.png", "/etc/1.png", "a/../../1.png"])
def test_file_names_stay_in_the_root(tmp_path, name):
    lines = refusal(write_split(tmp_path, "train", [image(4, file_name=name)], []))
    assert f"image 4: file_name '{name}' must stay in the image folder (images[0])" in lines[0]


def test_subfolders_are_allowed(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    root = write_split(tmp_path, "train", [image(1, file_name="a/1.png")], [item(1, 1, [0, 0, 5, 5])])
    assert load_split(at(root), "train").images[0].path == root / "train" / "a" / "1.png"


def test_nothing_to_train_on(tmp_path):
    crowd = item(1, 1, [0, 0, 5, 5], iscrowd=1)
    for split in ("train", "val"):
        write_split(tmp_path, split, [image(1)], [crowd])
    assert "none of the 1 images has an object to train on" in refusal(tmp_path)[0]
    assert load_split(at(tmp_path), "val").most_objects == 0


def test_categories_of_a_checkpoint(tmp_path):
    root = write_split(tmp_path, "val", [image(1)], [item(1, 1, [0, 0, 5, 5], category=7)])
    known = Categories((1, 3, 7), ("bird", "cat", "dog"))
    split = load_split(at(root), "val", known)
    assert split.categories is known and split.objects(1).labels.tolist() == [2]
    assert (
        "category 7 (dog) is not among the 1 that were trained, and 1 object has it"
        in refusal(root, "val", categories=Categories((3,), ("cat",)))[0]
    )
    assert (
        "category 3 is cat, but was trained as cow" in refusal(root, "val", categories=Categories((3, 7), ("cow", "dog")))[0]
    )


def test_categories_that_training_lacks_are_left_out_where_they_have_no_object(tmp_path):
    more = [{"id": 3, "name": "cat"}, {"id": 8, "name": "hen"}, {"id": 9, "name": "cow"}]
    root = write_split(tmp_path, "val", [image(1)], [item(1, 1, [0, 0, 5, 5])], more)
    known = Categories((3,), ("cat",))
    split = load_split(at(root), "val", known)
    assert split.categories is known and split.objects(1).labels.tolist() == [0]
    assert split.remarks == ("2 categories without objects, left out since training has none such: hen, cow",)
    write_split(tmp_path, "val", [image(1)], [item(1, 1, [0, 0, 5, 5], category=9, iscrowd=1)], more)
    assert "category 9 (cow) is not among the 1 that were trained" in refusal(root, "val", categories=known)[0]


def test_categories_are_plain():
    assert json.loads(json.dumps(asdict(Categories((3, 7), ("cat", "dog"))))) == {"ids": [3, 7], "names": ["cat", "dog"]}


@pytest.mark.parametrize("name, images, objects, classes", [("bccd", 292, 3941, 3), ("coco-open", 92, 820, 80)])
def test_real_data(real, name, images, objects, classes):
    split = load_split(at(real(name)), "train")
    assert (len(split.images), len(split.labels), len(split.categories)) == (images, objects, classes)
    assert split.labels.min() >= 0 and split.labels.max() < classes
    half = split.boxes[:, 2:] / 2
    assert (split.boxes[:, :2] - half > -1e-6).all() and (split.boxes[:, :2] + half < 1 + 1e-6).all()
    assert load_split(at(real(name)), "val", split.categories).categories == split.categories
