"""COCO's numbers, category ids, matches and anchor distances of outputs made by hand."""

import gc
import json
import random

import numpy as np
import pytest
import torch

from dndetr.data.coco import load_split
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.structures import Images, Output, Target
from dndetr.training.evaluate import (
    METRICS,
    coco_metrics,
    coco_results,
    detect,
    evaluate,
    examine,
    ground_truth,
    index,
    no_garbage_collection,
)
from tests.data.coco_files import at
from tests.training.tiny import CATEGORY_IDS, write_dataset


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return load_split(at(write_dataset(tmp_path_factory.mktemp("data"), train=2, val=8)), "val")


def output(logits: torch.Tensor, boxes: torch.Tensor, anchors: torch.Tensor | None = None) -> Output:
    """One layer, without denoising: logits (B, N, C), boxes (B, N, 4)."""
    layout = QueryLayout(groups=0, slots=0, queries=boxes.shape[1])
    return Output(logits[None], boxes[None], boxes if anchors is None else anchors, layout)


class Perfect(torch.nn.Module):
    """Finds every object, in an order of its own, among queries that see nothing."""

    def __init__(self, targets: list[Target], queries: int = 6, classes: int = 3):
        super().__init__()
        self.targets, self.queries, self.classes = iter(targets), queries, classes

    def forward(self, images: Images, known: None = None) -> Output:
        logits = torch.full((len(images.pixels), self.queries, self.classes), -9.0)
        boxes = torch.full((len(images.pixels), self.queries, 4), 0.5)
        for b in range(len(logits)):
            target = next(self.targets)
            place = random.Random(b).sample(range(self.queries), len(target.labels))
            logits[b, place, target.labels] = 9.0
            boxes[b, place] = target.boxes
        return output(logits, boxes)


def targets_of(split) -> list[Target]:
    return [Target(split.objects(i.id).labels, split.objects(i.id).boxes, i.id, (i.height, i.width)) for i in split.images]


def batches(targets: list[Target], size: int = 3):
    for start in range(0, len(targets), size):
        part = targets[start : start + size]
        yield Images(torch.zeros(len(part), 3, 8, 8), torch.zeros(len(part), 8, 8, dtype=torch.bool)), part


def run(split, model, targets, precision="fp32"):
    options = dict(top=6, counter="pycocotools", precision=precision, device=torch.device("cpu"))
    return evaluate(model, batches(targets), ground_truth(split), split.categories.ids, Matcher(MatchConfig()), **options)


def test_perfect_detections_have_an_ap_of_one_and_the_category_ids_of_the_file(split, capsys):
    targets = targets_of(split)
    found = run(split, Perfect(targets), targets)
    assert found.metrics["ap"] == pytest.approx(1.0)
    assert found.metrics["ar100"] == pytest.approx(1.0)
    assert found.metrics["ap_l"] is None  # no large object: nothing to count, not 0
    assert tuple(found.metrics) == METRICS
    assert {d["category_id"] for d in found.detections if d["score"] > 0.5} <= set(CATEGORY_IDS)
    truth = json.loads(split.annotation_file.read_text())["annotations"]
    best = {(d["image_id"], d["category_id"], *map(round, d["bbox"])) for d in found.detections if d["score"] > 0.5}
    assert best == {(a["image_id"], a["category_id"], *a["bbox"]) for a in truth if not a["iscrowd"]}
    assert capsys.readouterr().out == ""


def test_matches_are_the_objects_of_the_queries(split):
    targets = targets_of(split)
    found = run(split, Perfect(targets), targets)
    assert found.matches.image_id.tolist() == [image.id for image in split.images]
    assert found.matches.matched.shape == (8, 6)
    for row, target in zip(found.matches.matched, targets, strict=True):
        assert sorted(row[row >= 0].tolist()) == list(range(len(target.labels)))
    assert found.anchor_distance == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_model_computes_in_the_precision_of_the_settings_and_detections_are_fp32(split, precision, dtype):
    targets, seen = targets_of(split), []

    class Halves(Perfect):
        def forward(self, images: Images, known: None = None) -> Output:
            found = super().forward(images)
            seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return output(found.logits[0].to(dtype), found.boxes[0])

    assert run(split, Halves(targets), targets, precision).metrics["ap"] == pytest.approx(1.0)
    assert set(seen) == {dtype}


def test_swapped_categories_find_nothing(split):
    targets = targets_of(split)
    wrong = [Target((t.labels + 1) % 3, t.boxes, t.image_id, t.size) for t in targets]
    assert run(split, Perfect(wrong), targets).metrics["ap"] < 0.2


def test_no_detections_at_all(split):
    assert coco_metrics(ground_truth(split), [])["ap"] == 0
    assert coco_results([], CATEGORY_IDS) == []


def test_annotation_ids_from_zero_are_counted(split):
    """pycocotools takes id 0 for unmatched; the file has an annotation 0."""
    annotations = json.loads(split.annotation_file.read_text())["annotations"]
    assert min(a["id"] for a in annotations) == 0
    perfect = [{"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
               for a in annotations if not a["iscrowd"]]  # fmt: skip
    assert coco_metrics(ground_truth(split), perfect)["ap"] == pytest.approx(1.0)


def test_crowds_are_neither_found_nor_missed(split):
    truth = ground_truth(split)
    assert sum(a["iscrowd"] for a in truth.dataset["annotations"]) == 1
    perfect = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5}
               for a in truth.dataset["annotations"] if not a["iscrowd"]]  # fmt: skip
    crowd = next(a for a in truth.dataset["annotations"] if a["iscrowd"])
    inside = [{"image_id": crowd["image_id"], "category_id": crowd["category_id"], "bbox": [1, 1, 5, 5], "score": 0.9}]
    assert coco_metrics(truth, perfect + inside)["ap"] == pytest.approx(1.0)


@pytest.mark.parametrize("sizes", ["sml", "s", "l", ""])
def test_both_counters_give_the_same_numbers(sizes):
    truth, detections = random_scene(sizes)
    ours, theirs = (coco_metrics(truth, detections, counter) for counter in ("faster_coco_eval", "pycocotools"))
    assert ours == pytest.approx(theirs, abs=1e-12)  # and None where the other is None
    nothing_to_count = {f"{kind}_{size}" for kind in ("ap", "ar") for size in "sml" if size not in sizes}
    assert {name for name, value in ours.items() if value is None} == (nothing_to_count if sizes else set(METRICS))
    assert all(0.05 < value < 0.95 for value in ours.values() if value is not None)


def test_both_counters_take_no_detections_at_all():
    truth, _ = random_scene("sl")
    expected = {name: None if name.endswith("_m") else 0.0 for name in METRICS}
    assert [coco_metrics(truth, [], counter) for counter in ("faster_coco_eval", "pycocotools")] == [expected, expected]


@pytest.mark.parametrize("before", [True, False])
def test_counting_leaves_the_collection_of_garbage_as_it_was(before):
    (gc.enable if before else gc.disable)()
    try:
        with no_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == before
    finally:
        gc.enable()


SIDES = {"s": (6, 12, 28), "m": (32, 64, 96), "l": (128, 200, 300)}  # areas of 32 x 32 and 96 x 96 belong to two sizes
SCENE_CLASSES = (3, 4, 8, 9, 15, 16)  # the last two have no objects, the last one no detections


def random_scene(sizes: str):
    """Ground truth and detections of 200 images, with what makes counting hard.

    That is: crowds, images and classes without objects, equal scores, whole numbers that make overlaps equal or as large as
    a threshold, and images of 300 detections, more than 100 of them of one class.
    """
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image in range(1, 201):
        count = int(rng.integers(1, 9)) if sizes and image % 5 else 0
        corners = rng.integers(0, 400, (count, 2))
        boxes = np.array([[*corner, *rng.choice(SIDES[rng.choice(list(sizes))], 2)] for corner in corners], dtype=int)
        labels = rng.choice(4, size=count, p=(0.7, 0.1, 0.1, 0.1))
        for box, label in zip(boxes.tolist(), labels, strict=True):
            place = {"image_id": image, "category_id": SCENE_CLASSES[label], "bbox": box}
            rest = {"id": len(annotations) + 1, "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.1)}
            annotations.append({**place, **rest})
        for _ in range(300 if image % 10 == 1 else 20):
            box, label = rng.integers(1, 200, 4), rng.integers(5)
            if count and rng.random() < 0.8:  # one of the objects, a little beside it
                i = rng.integers(count)
                box, label = np.maximum(boxes[i] + rng.normal(0, 0.1, 4) * boxes[i][2], 1).astype(int), labels[i]
            score = round(rng.random(), 1 if image % 2 else 6)
            place = {"image_id": image, "category_id": SCENE_CLASSES[label], "bbox": box.tolist()}
            detections.append({**place, "score": score})
    images = [{"id": i, "width": 800, "height": 800} for i in range(1, 201)]
    categories = [{"id": i, "name": str(i)} for i in SCENE_CLASSES]
    return index({"images": images, "categories": categories, "annotations": annotations}), detections


def test_detections_are_the_best_query_class_pairs_in_pixels():
    logits = torch.tensor([[[2.0, 1.0], [-3.0, 3.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 1.0]]])
    (found,) = detect(output(logits, boxes), [(100, 200)], top=3)
    assert found.labels.tolist() == [1, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    expected = torch.tensor([[0.0, 0, 100, 100], [80, 30, 120, 70], [80, 30, 120, 70]])
    torch.testing.assert_close(found.boxes, expected)
    assert len(detect(output(logits, boxes), [(100, 200)], top=300)[0].scores) == 4


@pytest.mark.parametrize(("width", "distance"), [(4, 0.1 + 0.2 + 0.05 + 0.05), (2, 0.3)])
def test_anchor_distance_is_l1_over_what_anchors_have(width, distance):
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]])
    anchors = torch.tensor([[[0.6, 0.7, 0.25, 0.15], [0.9, 0.9, 0.1, 0.1]]])[..., :width]
    logits = torch.tensor([[[5.0], [-5.0]]])
    target = Target(torch.tensor([0]), boxes[0, :1], 1, (10, 10))
    (finding,) = examine(output(logits, boxes, anchors), [target], Matcher(MatchConfig()), top=2)
    np.testing.assert_allclose(finding.distances, [distance], rtol=1e-5)
    assert finding.matched.tolist() == [0, -1]


def test_images_without_objects_alone():
    empty = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), 1, (10, 10))
    (finding,) = examine(output(torch.zeros(1, 2, 1), torch.rand(1, 2, 4)), [empty], Matcher(MatchConfig()), top=2)
    assert finding.matched.tolist() == [-1, -1]
    assert len(finding.distances) == 0
