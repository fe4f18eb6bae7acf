"""Annotations that are well-formed and yet not what their author meant, and what is said of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data import annotations as kinds
from dndetr.data.annotations import Object
from dndetr.data.check import check_dataset, lines
from dndetr.data.coco import load_split
from dndetr.data.layouts import find_dataset
from dndetr.data.suspects import SAME, overlap, repeated
from dndetr.training.commands import evaluate_command
from dndetr.training.evaluate import ground_truth
from dndetr.training.loop import train
from tests.data.coco_files import at, image, item, write_split
from tests.training.tiny import resolved, tiny_config, write_dataset


def written(root, boxes, **more):
    """Both splits with these boxes, ten to an image of 640 x 480."""
    images = [image(i, 640, 480) for i in range(1, 2 + len(boxes) // 10)]
    entries = [item(i + 1, 1 + i // 10, list(box), **more) for i, box in enumerate(boxes)]
    for split in ("train", "val"):
        write_split(root, split, images, entries)
    return root


def kinds_of(root) -> list[str]:
    return [defect.kind for defect in at(root).annotations("train").defects]


def random_corners(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    first = rng.uniform(0, (500, 350), (count, 2))
    return np.concatenate((first, first + rng.uniform(10, (140, 130), (count, 2))), axis=1).round(1)


def test_boxes_in_shares_of_the_image_are_refused_in_one_sentence(tmp_path):
    shares = random_corners(18) / (640, 480, 640, 480)
    shares[:, 2:] -= shares[:, :2]
    root = written(tmp_path, shares.tolist())
    assert kinds_of(root).count(kinds.NORMALISED) == 1
    with pytest.raises(UserError, match="all 18 boxes lie between 0 and 1, as .* multiply them by the sizes") as caught:
        load_split(at(root), "train")
    assert sum("between 0 and 1" in line for line in caught.value.lines) == 1


@pytest.mark.parametrize("boxes", [[[0, 0, 1, 1]], [[0.5, 0.5, 0.4, 2]], [[0.5, 0.5, 0.4, 0.4], [10, 10, 20, 20]]])
def test_small_objects_in_pixels_are_not_taken_for_shares(tmp_path, boxes):
    assert kinds.NORMALISED not in kinds_of(written(tmp_path, boxes))


def test_corners_are_said_once_and_trained_on(tmp_path):
    corners = random_corners(18).tolist()
    root = written(tmp_path, corners)
    assert kinds_of(root).count(kinds.CORNERS) == 1
    said = [line for line in load_split(at(root), "train").mended if "seems to hold corners" in line]
    assert len(said) == 1 and "of 18 boxes leave their image as x, y, width, height" in said[0]
    assert "write [x1, y1, x2 - x1, y2 - y1]" in said[0]


@pytest.mark.parametrize("count", [1, 2, 18])
def test_sound_boxes_are_not_taken_for_corners(tmp_path, count):
    boxes = random_corners(count)
    boxes[:, 2:] -= boxes[:, :2]
    boxes[: count // 2, 2:] += 200  # some leave their image
    assert kinds.CORNERS not in kinds_of(written(tmp_path, boxes.tolist()))


def test_two_boxes_that_leave_do_not_speak_for_corners(tmp_path):
    assert kinds.CORNERS not in kinds_of(written(tmp_path, [[300, 200, 400, 300], [310, 100, 390, 400]]))


@pytest.mark.parametrize(("shift", "told"), [(0, True), (1.0, True), (4, True), (6, False)])
def test_an_object_that_is_annotated_twice_is_found(tmp_path, shift, told):
    """An IoU of 0.92 is one object, one of 0.89 may be two."""
    root = written(tmp_path, [[100, 100, 100, 100], [300, 100, 100, 100], [100 + shift, 100, 100, 100]])
    found = [d for d in at(root).annotations("train").defects if d.kind == kinds.REPEATED]
    assert [(d.image_id, d.annotation_id) for d in found] == [(1, 3)] * told
    if told:
        assert "is that of annotation 1 of the same class, or nearly: annotated twice?" in found[0].message
        assert load_split(at(root), "train").mended[0].startswith("1 of 3 boxes are those of another object")


def test_other_classes_images_and_crowds_are_not_annotated_twice(tmp_path):
    box = [5, 5, 10, 10]
    entries = [item(1, 1, box), item(2, 1, box, category=7), item(3, 2, box), item(4, 1, box, iscrowd=1)]
    write_split(tmp_path, "train", [image(1), image(2)], entries)
    assert kinds_of(tmp_path) == []


def test_all_pairs_are_found_that_a_slow_loop_finds():
    rng = np.random.default_rng(0)
    boxes = np.concatenate((rng.uniform(0, 12, (400, 2)), rng.uniform(20, 23, (400, 2))), axis=1)
    objects = [Object(i, int(rng.integers(2)), int(rng.integers(2)), tuple(box), False) for i, box in enumerate(boxes)]
    expected = set()
    for b in range(400):
        alike = [
            a for a in range(400)
            if a != b and (objects[a].image_id, objects[a].category_id) == (objects[b].image_id, objects[b].category_id)
            and overlap(boxes[[a]], boxes[[b]])[0] >= SAME
        ]  # fmt: skip
        expected |= {b for a in alike if a < b}
    found = repeated(objects, boxes)
    assert {second.id for _, second in found} == expected and len(expected) > 50
    assert all(first.id < second.id for first, second in found)


def test_where_all_are_crowds_that_is_said_with_the_setting(tmp_path):
    root = written(tmp_path, [[10, 10, 20, 20], [50, 50, 20, 30]], iscrowd=1)
    with pytest.raises(UserError, match="none of the 1 images has an object to train on: 2 are marked as crowds") as caught:
        load_split(at(root), "train")
    assert "data.crowds=objects" in str(caught.value)
    split = load_split(find_dataset(DataConfig(root=str(root), crowds="objects")), "train")
    assert len(split.labels) == 2 and not split.written.crowds.any()
    assert [entry["iscrowd"] for entry in ground_truth(split).dataset["annotations"]] == [0, 0]


def test_objects_to_be_ignored_are_counted_and_not_trained_on(tmp_path):
    entries = [item(1, 1, [5, 5, 9, 9]), item(2, 1, [20, 5, 9, 9], ignore=1)]
    for split in ("train", "val"):
        write_split(tmp_path, split, [image(1)], entries)
    split = load_split(at(tmp_path), "train")
    assert len(split.labels) == 1 and len(ground_truth(split).dataset["annotations"]) == 2
    (told,) = split.mended
    assert told == 'objects to be ignored ("ignore", or difficult), 1, are not trained on, but counted, as COCO does'
    assert check_dataset(at(tmp_path)).splits["train"].objects == 1


def test_what_is_mended_is_told_in_the_header_and_beside_the_ap(tmp_path, capsys):
    root = write_dataset(tmp_path / "data")
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["annotations"][0]["bbox"] = [60, 5, 9, 9]
        file.write_text(json.dumps(content))
    config = tiny_config(root, epochs=1)
    run = train(resolved(config), tmp_path / "run")
    out = capsys.readouterr().out
    header, _, ending = out.partition("epoch 1/1")
    assert "train: 1 of 14 boxes with nothing in their image are left out of training" in header
    assert "val: 1 of 8 boxes with nothing in their image are left out of training" in header
    assert "1 of 8 boxes with nothing in their image are left out of training" in ending
    assert "narrower than a pixel" not in header
    evaluate_command(run)
    out = capsys.readouterr().out
    assert f"validation images: {root}/annotations/instances_val.json" in out
    assert "1 of 8 boxes with nothing in their image are left out of training" in out


def test_objects_below_a_pixel_are_told(tmp_path, capsys):
    root = write_dataset(tmp_path / "data")
    config = tiny_config(root, epochs=1)
    train(resolved(replace(config, data=replace(config.data, eval_size=4, max_size=4, sizes=(32,)))), tmp_path / "run")
    assert "objects are narrower than a pixel at data.eval_size=4" in capsys.readouterr().out


def test_the_check_prints_findings_and_exits_as_before(tmp_path):
    root = written(tmp_path, [[100, 100, 100, 100], [100, 100, 100, 100]])
    text = lines(check_dataset(at(root)))
    assert "2 defects: annotated twice 2" in text
