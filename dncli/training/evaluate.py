"""Evaluation: detections, COCO's 12 numbers, and the matches that the paper's measures are made of."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.analysis.instability import Matches
from dndetr.asking import PLAIN, Ask
from dndetr.console import UserError
from dndetr.data.coco import Split
from dndetr.models.boxes import cxcywh_to_xyxy
from dndetr.models.matcher import Matcher
from dndetr.models.structures import Images, Output, Target
from dndetr.training import distributed
from dndetr.training.precision import looking

METRICS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l")


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation leaves behind."""

    metrics: dict[str, float | None]  # METRICS; None where there was nothing to count
    detections: list[dict[str, Any]]  # COCO results with the original category ids
    matches: Matches  # the vectors V of Eq. 1 of every image
    anchor_distance: float | None  # mean l1 of initial anchors and matched boxes (Sec. 3.2); None = no objects, no anchors


class Detections(NamedTuple):
    """The best guesses for one image, best first."""

    boxes: Tensor  # (T, 4) x1, y1, x2, y2 in pixels of the image on disk
    labels: Tensor  # (T,) 0 .. C-1
    scores: Tensor  # (T,)


class Finding(NamedTuple):
    """What is kept of one image, small enough to be sent between processes."""

    image_id: int
    boxes: np.ndarray  # (T, 4)
    labels: np.ndarray  # (T,)
    scores: np.ndarray  # (T,)
    layers: np.ndarray  # (L, N) int32: the object that a query of each decoder layer matches, -1 = nothing
    distances: np.ndarray  # (M,) l1, of every matched object; (0,) where queries have no anchors

    @property
    def matched(self) -> np.ndarray:
        """(N,), of the last layer."""
        return self.layers[-1]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Images, list[Target]]],
    truth: COCO,
    category_ids: Sequence[int],
    matcher: Matcher,
    *,
    ask: Ask = PLAIN,
    top: int,
    counter: str,
    most: int,
    precision: str,
    device: torch.device,
) -> Evaluation | None:
    """Evaluate on this process's share of the images. The main process counts; the others get None.

    `truth` holds the annotations of all images, `category_ids` the category of each class; `ask` says what the detector is
    told and which objects it has to find; `counter` is eval.counter, `most` eval.detections.
    `precision`, eval.precision, does not follow the training's: in fp32 a checkpoint gives the same numbers everywhere.
    """
    model.eval()
    findings = []
    for images, targets in batches:
        look = looking(model, images, precision, device)
        output, targets = ask(look, [target.to(device) for target in targets])
        findings += examine(output, targets, matcher, top)
    everyone = {finding.image_id: finding for share in distributed.gather(findings) for finding in share}
    if not distributed.is_main():
        return None
    findings = [everyone[image] for image in truth.getImgIds() if image in everyone]
    detections = coco_results(findings, category_ids)
    distances = np.concatenate([finding.distances for finding in findings])
    return Evaluation(
        metrics=coco_metrics(truth, detections, counter, most),
        detections=detections,
        matches=matches_of(findings),
        anchor_distance=float(distances.mean()) if len(distances) else None,
    )


def detect(output: Output, sizes: Sequence[tuple[int, int]], top: int) -> list[Detections]:
    """The `top` highest scores over queries x classes of each image, as in Deformable DETR and DN-DETR.

    `output` is the matching part, `sizes` the height and width of each image on disk. A query may appear with several
    classes; of equal scores, which are frequent in half precision, the first query and then the first class is the better
    (torch.topk would order them by its sizes). Boxes are not clipped to the image. Scores of 0, of queries that do not count,
    are no detections.
    """
    scores = output.scores()  # B N C
    if output.softmax:  # as in DETR: where classes exclude each other a query stands for its best one
        scores = scores * F.one_hot(scores.argmax(-1), output.classes)
    scores, index = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    scores, index = scores[:, :top], index[:, :top]  # B T
    query, label = index // output.classes, index % output.classes
    boxes = cxcywh_to_xyxy(output.boxes[-1]).gather(1, query[..., None].expand(-1, -1, 4))  # B T 4
    scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype, device=boxes.device)
    images = zip(boxes * scale[:, None], label, scores, (scores > 0).sum(1).tolist(), strict=True)
    return [Detections(box[:some], label[:some], score[:some]) for box, label, score, some in images]


def examine(output: Output, targets: Sequence[Target], matcher: Matcher, top: int) -> list[Finding]:
    """Detections, matches and anchor distances of a batch."""
    found = detect(output, [target.size for target in targets], top)
    layers = match_vectors(output, targets, matcher)  # L B N
    findings = []
    for b, target in enumerate(targets):
        distances = torch.zeros(0)
        if output.anchors is not None:
            distances = anchor_distances(*matched_anchors(output.anchors[b], target, layers[-1, b]))
        arrays = [x.cpu().numpy() for x in (found[b].boxes, found[b].labels, found[b].scores, layers[:, b], distances)]
        findings.append(Finding(target.image_id, *arrays))
    return findings


def match_vectors(output: Output, targets: Sequence[Target], matcher: Matcher) -> Tensor:
    """Eq. 1 of every decoder layer and image, (L, B, N) int32: the object that a query matches, -1 = nothing."""
    layers = torch.full(output.logits.shape[:3], -1, dtype=torch.int32, device=output.logits.device)  # L B N
    for vectors, assigned in zip(layers, matcher(output, targets), strict=True):
        vectors[assigned.image, assigned.query] = assigned.object.int()
    return layers


def matched_anchors(anchors: Tensor, target: Target, matched: Tensor) -> tuple[Tensor, Tensor]:
    """The initial anchors (A, 2 or 4) of the queries that match something, and the boxes (A, 4) that they match.

    `anchors` (N, 2 or 4) and `matched` (N,), a vector of Eq. 1, are of one image.
    """
    query = (matched >= 0).nonzero()[:, 0]
    return anchors[query], target.boxes[matched[query].long()]


def anchor_distances(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Sec. 3.2: l1 of cx, cy, w, h in units of the image, (A,); of anchor points over the centre."""
    return (anchors - boxes[:, : anchors.shape[1]]).abs().sum(1)


def matches_of(findings: Sequence[Finding]) -> Matches:
    """The matches of these images, in this order."""
    layers = of_one_width([finding.layers for finding in findings]).swapaxes(0, 1)  # L I N
    return Matches(np.array([finding.image_id for finding in findings]), layers[-1], layers)


def of_one_width(matched: Sequence[np.ndarray]) -> np.ndarray:
    """(..., N) of every image to (I, ..., N): where images were looked at a different number of times, the rest is -1."""
    widest = max(m.shape[-1] for m in matched)
    return np.stack([np.pad(m, [(0, 0)] * (m.ndim - 1) + [(0, widest - m.shape[-1])], constant_values=-1) for m in matched])


def coco_results(findings: Iterable[Finding], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO's result format: boxes x, y, width, height, and the category ids of the annotations."""
    results = []
    with no_garbage_collection():
        for finding in findings:
            boxes = finding.boxes.astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            scores = finding.scores.astype(np.float64).round(6)
            results += [
                {"image_id": finding.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
                for box, label, score in zip(boxes.round(3).tolist(), finding.labels.tolist(), scores.tolist(), strict=True)
            ]
    return results


def coco_metrics(
    truth: COCO, detections: Iterable[dict[str, Any]], counter: str = "pycocotools", most: int = 100
) -> dict[str, float | None]:
    """COCO's 12 numbers; crowd boxes are neither found nor missed. `most` is eval.detections, COCO's 100."""
    with no_garbage_collection(), contextlib.redirect_stdout(io.StringIO()):
        evaluation = counter_class(counter)(*renumbered(truth, detections), "bbox")
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
    return numbers(evaluation.eval, evaluation.params)


def renumbered(truth: COCO, detections: Iterable[dict[str, Any]]) -> tuple[COCO, COCO]:
    """Both with images and categories from 1 on, in the order of their ids, by which counters break ties.

    As floats, which some counters make of them, ids beyond 2^53 would be one id, and some refuse those below 0.
    """
    images = {i: number for number, i in enumerate(sorted(truth.imgs), start=1)}
    categories = {i: number for number, i in enumerate(sorted(truth.cats), start=1)}

    def renamed(entry: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {**entry, "image_id": images[entry["image_id"]], "category_id": categories[entry["category_id"]], **more}

    listed = {
        "images": [{**image, "id": images[i]} for i, image in truth.imgs.items()],
        "categories": [{**category, "id": categories[i]} for i, category in truth.cats.items()],
    }
    found = [
        renamed(detection, id=i, area=detection["bbox"][2] * detection["bbox"][3])
        for i, detection in enumerate((d for d in detections if d["category_id"] in categories), start=1)
    ]
    objects = [renamed(entry) for entry in truth.dataset["annotations"]]
    return index({**listed, "annotations": objects}), index({**listed, "annotations": found})


def numbers(counted: dict[str, Any], params: Any) -> dict[str, float | None]:
    """The 12 numbers of what a counter has accumulated, whatever the most detections are; None where nothing was to be found.

    `precision` is (T, R, C, A, M) and `recall` (T, C, A, M) over IoU thresholds, recalls, classes, sizes (all, small, medium,
    large) and the most detections, -1 where there is no object. pycocotools' own summary knows 100 detections only.
    """
    thresholds = np.asarray(params.iouThrs)

    def mean(values: np.ndarray) -> float | None:
        values = values[values > -1]
        return float(values.mean()) if values.size else None

    def precision(size: int = 0, iou: float | None = None) -> float | None:
        chosen = slice(None) if iou is None else np.isclose(thresholds, iou)
        return mean(counted["precision"][chosen, :, :, size, -1])

    aps = [precision(), precision(iou=0.5), precision(iou=0.75), *(precision(size) for size in (1, 2, 3))]
    recalls = [mean(counted["recall"][:, :, 0, most]) for most in range(3)]
    recalls += [mean(counted["recall"][:, :, size, -1]) for size in (1, 2, 3)]
    return dict(zip(METRICS, aps + recalls, strict=True))


def counter_class(counter: str) -> type:
    """The COCOeval of the package that eval.counter names. Raises UserError where it is not installed."""
    if counter == "pycocotools":
        return COCOeval
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise UserError("eval.counter=faster_coco_eval needs its package: pip install 'dndetr[fast]'") from error
    return COCOeval_faster


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python otherwise searches a million new dicts again and again for cycles, and there are none."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def ground_truth(split: Split, found: frozenset[int] | None = None) -> COCO:
    """pycocotools' view of the annotations as they are written, crowds included: of the classes `found`, None = of all.

    Annotations are numbered anew from 1, since pycocotools takes an object of id 0 for none. Boxes are not mended as in
    training, so that AP is what COCO's own counting says of the same file: what lies outside of an image is missed.
    """
    categories = list(zip(split.categories.ids, split.categories.names, strict=True))
    if found is not None:
        categories = [categories[label] for label in sorted(found)]
    kept = {i for i, _ in categories}
    columns = zip(*(column.tolist() for column in split.written), strict=True)
    annotations = [
        {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for image, category, box, area, crowd in columns
        if category in kept
    ]
    return index(
        {
            "images": [{"id": image.id, "width": image.width, "height": image.height} for image in split.images],
            "categories": [{"id": i, "name": name} for i, name in categories],
            "annotations": [{"id": i, **entry} for i, entry in enumerate(annotations, start=1)],
        }
    )


def index(dataset: dict[str, Any]) -> COCO:
    """pycocotools' index of annotations that lie in memory; it prints, which nobody asked for."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
