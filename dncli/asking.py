"""What an evaluation tells the detector about a batch, and how the answers become one output: the ways of Sec. 5.7."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.ops import nms

from dndetr.config import Config
from dndetr.data.coco import Categories
from dndetr.models.boxes import cxcywh_to_xyxy
from dndetr.models.denoising.noise import NoiseConfig, noise_targets
from dndetr.models.denoising.queries import Known
from dndetr.models.structures import Output, Target
from dndetr.tasks import labels_of, only, take

Look = Callable[[Known | None], Output]  # the detector before one batch of images: told something, its matching part


class Answer(NamedTuple):
    """One output for a batch, and the objects that it is to be compared with."""

    output: Output
    targets: list[Target]


class Ask(Protocol):
    """Looks at a batch once or several times."""

    def __call__(self, look: Look, targets: list[Target]) -> Answer: ...


@dataclass(frozen=True)
class Plain:
    """Nothing is told. To be found are the objects of the classes `found`, None = of all; other scores do not count."""

    found: frozenset[int] | None = None

    def __call__(self, look: Look, targets: list[Target]) -> Answer:
        return answer(look(None), targets, self.found)


PLAIN = Plain()


@dataclass(frozen=True)
class GivenObjects:
    """The objects of all other classes are told without noise: AP(Cond) of Table 9."""

    found: frozenset[int]
    num_classes: int

    def __call__(self, look: Look, targets: list[Target]) -> Answer:
        others = frozenset(range(self.num_classes)) - self.found
        told = tell([only(target, others) for target in targets], self.num_classes)
        return answer(look(told), targets, self.found)


@dataclass(frozen=True)
class GivenLabels:
    """The classes of an image are given (Table 10): one look for each, told its label, of which its own scores count.

    `labels` holds the classes of every image by its id; None = those that are truly there. Where they are not `told`, there
    is one plain look, of which the scores of these classes count: what labels are worth by themselves.
    """

    labels: Mapping[int, Sequence[int]] | None = None
    found: frozenset[int] | None = None  # the classes of which objects exist at all, None = all
    told: bool = True

    def __call__(self, look: Look, targets: list[Target]) -> Answer:
        targets = [only(target, self.found) for target in targets]
        given = [self.classes(target) for target in targets]
        if not self.told:
            return Answer(of_classes(look(None), given), targets)
        outputs = []
        for i in range(max(1, *map(len, given))):
            asked = [classes[i : i + 1] for classes in given]  # of an image with fewer classes none
            label = torch.tensor([classes[0] if classes else 0 for classes in asked], device=targets[0].boxes.device)
            outputs.append(of_classes(look(Known(label=label)), asked))
        return Answer(beside(outputs), targets)

    def classes(self, target: Target) -> list[int]:
        return target.labels.unique().tolist() if self.labels is None else list(self.labels.get(target.image_id, ()))


@dataclass(frozen=True)
class Progressive:
    """Progressive inference (Sec. 5.7.2): what is found with the most confidence is told in the next round.

    In each of `rounds` rounds those queries join the known objects whose best score is at least `threshold`, then the rest
    is asked for again. They keep the scores and boxes that they were found with; with 0 rounds this is plain detection.
    Every object is told once, as it was in training: of queries on the same place the best, and none on that of a known one.
    """

    rounds: int
    threshold: float
    num_classes: int
    found: frozenset[int] | None = None  # the classes to find, None = all

    def __call__(self, look: Look, targets: list[Target]) -> Answer:
        output = look(None)
        known: list[Output] = []
        told: list[Target] = []
        for _ in range(self.rounds):
            sure = output.scores().amax(-1) >= self.threshold  # B N
            new = sure & only_best(output, told)
            if not new.any():
                break
            known.append(hidden(output, ~new))
            told = objects_in(known)
            output = look(tell(told, self.num_classes))
        return answer(beside([*known, output]), targets, self.found)


@dataclass(frozen=True)
class Suppressed:
    """Nothing is told, and of queries on the same place the best counts: the control of progressive inference."""

    found: frozenset[int] | None = None

    def __call__(self, look: Look, targets: list[Target]) -> Answer:
        output = look(None)
        return answer(hidden(output, ~only_best(output)), targets, self.found)


def build_ask(config: Config, categories: Categories) -> Ask:
    """How the evaluations of a training ask: known labels are told, known objects are not."""
    found = labels_of(config, categories)
    return GivenLabels(found=found) if config.task.name == "known_labels" else Plain(found)


def answer(output: Output, targets: Sequence[Target], found: frozenset[int] | None) -> Answer:
    """The output and the objects of the classes `found`, None = of all."""
    if found is not None:
        output = of_classes(output, [sorted(found)] * len(targets))
    return Answer(output, [only(target, found) for target in targets])


def tell(objects: Sequence[Target], num_classes: int) -> Known:
    """Objects as they are, one group of them, seen by the matching queries."""
    none = NoiseConfig(groups=1, center_shift=0, box_scale=0, label_flip=0)
    return Known(noise_targets(objects, none, num_classes, [torch.Generator() for _ in objects]), isolated=False)


def objects_in(outputs: Sequence[Output]) -> list[Target]:
    """The objects of each image that are in outputs, one a query that is not hidden."""
    output = beside(outputs)
    scores, labels = output.logits[-1][..., : output.classes].max(-1)  # B N
    objects = [Target(label, box) for label, box in zip(labels, output.boxes[-1], strict=True)]
    return [take(target, score > HIDDEN) for target, score in zip(objects, scores, strict=True)]


SAME = 0.7  # queries whose boxes overlap by more, as IoU, are on the same place


def only_best(output: Output, known: Sequence[Target] = ()) -> Tensor:
    """(B, N) bool: the queries with the best score on their place, whatever their class, where no known object is."""
    best = torch.zeros(output.logits.shape[1:3], dtype=torch.bool, device=output.logits.device)
    for b, (scores, boxes) in enumerate(zip(output.scores().amax(-1), output.boxes[-1], strict=True)):
        if known:
            boxes = torch.cat((known[b].boxes, boxes))
            scores = torch.cat((torch.full_like(known[b].boxes[:, 0], 2.0), scores))  # above every score of a query
        kept = nms(cxcywh_to_xyxy(boxes), scores, SAME) - (len(boxes) - best.shape[1])
        best[b, kept[kept >= 0]] = True
    return best


HIDDEN = torch.finfo(torch.float32).min  # the logit of what does not count: no score, and still no NaN where it is subtracted


def hidden(output: Output, mask: Tensor) -> Output:
    """The output without the queries of `mask` (B, N)."""
    return without(output, mask[..., None])


def without(output: Output, mask: Tensor) -> Output:
    """The output in which some classes of some queries do not count: `mask` broadcasts to (B, N, C). Other scores stay."""
    if not output.softmax:
        return replace(output, logits=output.logits.masked_fill(mask, HIDDEN))
    logits = output.logits.log_softmax(-1)
    classes, none = logits[..., :-1], logits[..., -1:]
    lost = classes.masked_fill(~mask, HIDDEN)  # is "no object" now
    none = torch.cat((lost, none), dim=-1).logsumexp(-1, keepdim=True)
    return replace(output, logits=torch.cat((classes.masked_fill(mask, HIDDEN), none), dim=-1))


def of_classes(output: Output, classes: Sequence[Sequence[int]]) -> Output:
    """The output with the scores of these classes of each image, and no others."""
    others = torch.ones(len(classes), output.classes, dtype=torch.bool, device=output.logits.device)  # B C
    for b, own in enumerate(classes):
        others[b, list(own)] = False
    return without(output, others[:, None])


def beside(outputs: Sequence[Output]) -> Output:
    """The queries of several outputs for the same images as those of one, all that is kept of the layout is their number."""
    if len(outputs) == 1:
        return outputs[0]
    first = outputs[0]
    layout = replace(first.layout, groups=0, slots=0, queries=sum(output.layout.queries for output in outputs))
    logits, boxes = (torch.cat([getattr(o, name) for o in outputs], dim=2) for name in ("logits", "boxes"))
    anchors = None if first.anchors is None else torch.cat([o.anchors for o in outputs], dim=1)
    return replace(first, logits=logits, boxes=boxes, anchors=anchors, layout=layout)
