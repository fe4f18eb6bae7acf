"""What is found in an image does not depend on the batch that it is evaluated in: its neighbours, their order, its padding."""

import pytest
import torch

from dndetr.data.loader import collate
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.structures import Target
from dndetr.training.evaluate import Evaluation, evaluate, index
from tests.hosts.test_contract import CLASSES, FORMS, QUERIES, detector

SIZES = [(64, 96), (61, 97), (47, 66), (90, 64), (33, 50), (64, 64)]  # few of them multiples of a stride
ALONE = [[i] for i in range(len(SIZES))]
BATCHES = {
    "of 2": [[0, 1], [2, 3], [4, 5]],
    "of 4": [[0, 1, 2, 3], [4, 5]],
    "of 4 in another order": [[5, 2, 4, 1], [3, 0]],
    "all": [[3, 5, 1, 0, 4, 2]],
}


def samples(boxes=None):
    """An image of noise of each size, and objects where they are given."""
    for i, (height, width) in enumerate(SIZES):
        view = torch.randn(3, height, width, generator=torch.Generator().manual_seed(i))
        none = torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)
        yield view, Target(*(boxes[i] if boxes else none), image_id=i, size=(height, width))


def evaluated(model, batches, objects=None) -> Evaluation:
    """The evaluation in these batches, of all queries in all classes; `objects` are labels and boxes of each image."""
    images = list(samples(objects))
    annotations = []
    for _, target in images:
        for label, (x, y, w, h) in zip(target.labels.tolist(), target.boxes.tolist(), strict=True):
            height, width = target.size
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": target.image_id, "category_id": label, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    truth = index(
        {
            "images": [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(SIZES)],
            "categories": [{"id": c, "name": str(c)} for c in range(CLASSES)],
            "annotations": annotations,
        }
    )
    return evaluate(
        model,
        [collate([images[i] for i in batch]) for batch in batches],
        truth,
        range(CLASSES),
        Matcher(MatchConfig()),
        top=3 * QUERIES * CLASSES,
        counter="pycocotools",
        most=100,
        precision="fp32",
        device=torch.device("cpu"),
    )


def nearly_found(alone: Evaluation):
    """Objects that a detector finds more or less: its best boxes of some classes, moved a little, as labels and boxes."""
    rng, objects = torch.Generator().manual_seed(0), []
    for i, (height, width) in enumerate(SIZES):
        found = [each for each in alone.detections if each["image_id"] == i][: 3 * CLASSES : 3]
        x, y, w, h = torch.tensor([each["bbox"] for each in found]).T
        boxes = torch.stack(((x + w / 2) / width, (y + h / 2) / height, w / width, h / height), dim=1)
        noise = torch.randn(boxes.shape, generator=rng) * 0.05
        objects.append((torch.tensor([each["category_id"] for each in found]), boxes + noise * boxes[:, 2:].repeat(1, 2)))
    return objects


@pytest.mark.parametrize("form", FORMS)
def test_detections_and_ap_do_not_depend_on_the_batch(form):
    model = detector(form)
    objects = nearly_found(evaluated(model, ALONE))
    alone = evaluated(model, ALONE, objects)
    assert 0.1 < alone.metrics["ap"] < 0.9  # there is something to lose
    for name, batches in BATCHES.items():
        batched = evaluated(model, batches, objects)
        assert batched.metrics == pytest.approx(alone.metrics, abs=1e-5), name
        (classes, scores, boxes), (theirs, their_scores, their_boxes) = table(alone), table(batched)
        assert theirs == classes, name
        assert their_scores == pytest.approx(scores, abs=1e-5), name
        assert their_boxes == pytest.approx(boxes, abs=2e-3), name  # pixels, of which three decimals are kept
        assert (batched.matches.matched == alone.matches.matched).all()
        assert batched.anchor_distance == pytest.approx(alone.anchor_distance, abs=1e-6)


def table(evaluation: Evaluation) -> tuple[list[tuple[int, int]], list[float], list[float]]:
    """Every detection as image and class, score, and box; class by class, since nearly equal scores may change places."""
    found = sorted(evaluation.detections, key=lambda each: (each["image_id"], each["category_id"], -each["score"]))
    where = [(each["image_id"], each["category_id"]) for each in found]
    return where, [each["score"] for each in found], [side for each in found for side in each["bbox"]]
