"""COCO's numbers, category ids, matches and anchor distances of outputs made by hand."""

import contextlib
import copy
import gc
import io
import json
import random

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval

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
from tests.data.coco_files import at, item, write_split
from tests.data.coco_files import image as image_entry
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
    options = dict(top=6, counter="pycocotools", most=100, precision=precision, device=torch.device("cpu"))
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


def by_pycocotools(truth, detections) -> list[float]:
    """What its own summary says."""
    numbered = [{**d, "id": i, "area": d["bbox"][2] * d["bbox"][3]} for i, d in enumerate(detections, start=1)]
    counted = COCOeval(truth, index({**truth.dataset, "annotations": numbered}), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return counted.stats.tolist()


def as_summary(metrics) -> list[float]:
    return [-1 if value is None else value for value in metrics.values()]


@pytest.mark.parametrize("counter", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("sizes", ["sml", "s"])
def test_the_numbers_are_those_of_pycocotools_own_summary(sizes, counter):
    truth, detections = random_scene(sizes)
    ours = coco_metrics(truth, detections, counter)
    assert as_summary(ours) == pytest.approx(by_pycocotools(truth, detections), abs=1e-12)


@pytest.mark.parametrize("counter", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("first", [20231128000000000, -500, 2**62], ids=str)
def test_ids_of_any_size_make_no_difference(first, counter):
    """As floats, ids beyond 2^53 are one number for some counters, and images of one id share their objects."""
    truth, detections = random_scene("sml")
    expected = coco_metrics(truth, detections, "pycocotools")
    other, found = copy.deepcopy(truth.dataset), copy.deepcopy(detections)
    for entry in (*other["images"], *other["categories"]):
        entry["id"] += first
    for entry in (*other["annotations"], *found):
        entry["image_id"] += first
        entry["category_id"] += first
    assert coco_metrics(index(other), found, counter) == pytest.approx(expected, abs=1e-12)
    assert found[0]["image_id"] == 1 + first  # what is written keeps the ids of the file


@pytest.mark.parametrize("counter", ["pycocotools", "faster_coco_eval"])
def test_more_than_100_objects_of_a_class_can_be_counted(counter):
    boxes = [[40 * (i % 15), 40 * (i // 15), 33 + i % 5, 34] for i in range(150)]
    objects = [{"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
               for i, box in enumerate(boxes, start=1)]  # fmt: skip
    truth = index({"images": [{"id": 1}], "categories": [{"id": 1, "name": "x"}], "annotations": objects})
    found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 1 - i / 1000} for i, box in enumerate(boxes)]
    assert coco_metrics(truth, found, counter)["ap"] == pytest.approx(67 / 101)  # 100 of 150
    more = coco_metrics(truth, found, counter, 150)
    assert more["ap"] == more["ap50"] == more["ar100"] == more["ap_m"] == pytest.approx(1)
    assert more["ap_s"] is None and more["ar10"] == pytest.approx(10 / 150)


def test_the_file_itself_is_counted_and_not_what_was_mended(tmp_path):
    """Boxes that leave their image, or have no part in it, count as COCO's own counting counts them; so do areas of 0."""
    boxes = [[-10, -10, 30, 20], [30, 10, 40, 40], [41, 5, 3, 3], [0, 0, 20, 10], [5, 5, 0, 4], [-1e308, 0, 1.7e308, 5]]
    areas = [600, 1600, 9, 0, 0, 1e9]
    annotations = [item(i, 1, box, area=area) for i, (box, area) in enumerate(zip(boxes, areas, strict=True))]
    annotations.append({"id": 9, "image_id": 1, "category_id": 3, "bbox": [2, 2, 10, 10]})  # without area and iscrowd
    split = load_split(at(write_split(tmp_path, "val", [image_entry(1)], annotations)), "val")
    truth = ground_truth(split)
    assert [entry["bbox"] for entry in truth.dataset["annotations"]] == [*boxes, [2, 2, 10, 10]]
    assert [entry["area"] for entry in truth.dataset["annotations"]] == [*areas, 100]
    file = json.loads(split.annotation_file.read_text())
    for i, entry in enumerate(file["annotations"], start=1):
        entry |= {"id": i, "iscrowd": 0, "area": entry.get("area", 100)}
    found = [{"image_id": 1, "category_id": 3, "bbox": box, "score": 0.9} for box in (*boxes[:4], [0, 0, 9, 9])]
    assert as_summary(coco_metrics(truth, found)) == pytest.approx(by_pycocotools(index(file), found), abs=1e-12)


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


def test_of_equal_scores_the_first_query_and_class_come_first():
    """In half precision scores tie often, and torch.topk has an order of its own for each number of them."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (1, 300, 7), generator=rng).float()
    boxes = torch.rand(1, 300, 4, generator=rng)
    expected = sorted(range(2100), key=lambda i: -logits.flatten()[i])
    for top in (1, 7, 100, 300, 2100):
        (found,) = detect(output(logits, boxes), [(10, 10)], top=top)
        assert found.labels.tolist() == [i % 7 for i in expected[:top]]


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
