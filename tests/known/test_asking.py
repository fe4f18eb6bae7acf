"""What an evaluation tells, and how the answers become one: with a detector that writes down what it hears."""

from dataclasses import replace

import pytest
import torch

from dndetr.asking import HIDDEN, GivenLabels, GivenObjects, Plain, Progressive, Suppressed
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.structures import Output, Target
from dndetr.training.evaluate import detect
from tests.known.test_tasks import CLASSES, target

QUERIES = 3


class Looks:
    """Gives prepared logits (B, N, C), one answer after another, and keeps what it was told."""

    def __init__(self, *answers: torch.Tensor):
        self.answers, self.told = list(answers), []

    def __call__(self, known):
        self.told.append(known)
        logits = self.answers[len(self.told) - 1]
        boxes = torch.rand(1, *logits.shape[:2], 4, generator=torch.Generator().manual_seed(len(self.told)))
        return Output(logits[None], boxes, boxes[0], QueryLayout(0, 0, QUERIES))


def logits(seed: int, images: int = 2) -> torch.Tensor:
    return torch.randn(images, QUERIES, CLASSES, generator=torch.Generator().manual_seed(seed))


TARGETS = [target(0, 1, 3, image_id=5), target(2, image_id=6)]


def test_plainly_nothing_is_told():
    look = Looks(logits(0))
    output, targets = Plain(frozenset({1, 2}))(look, TARGETS)
    assert look.told == [None] and [t.labels.tolist() for t in targets] == [[1], [2]]
    torch.testing.assert_close(output.logits[0, :, :, 1:3], logits(0)[:, :, 1:3])
    assert (output.logits[0, :, :, [0, 3]] == HIDDEN).all()
    output, targets = Plain()(Looks(logits(0)), TARGETS)
    assert torch.equal(output.logits[0], logits(0)) and targets == TARGETS


def test_objects_of_the_other_classes_are_given_as_they_are():
    look = Looks(logits(0))
    _, targets = GivenObjects(frozenset({1}), CLASSES)(look, TARGETS)
    (known,) = look.told
    assert not known.isolated and known.denoise.groups == 1
    assert known.denoise.labels.tolist() == [[0, 3], [2, CLASSES]]
    assert known.denoise.valid.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(known.denoise.boxes[0], TARGETS[0].boxes[[0, 2]])
    assert [t.labels.tolist() for t in targets] == [[1], []]


def test_each_class_of_an_image_has_its_look_and_only_its_own_scores_count():
    look = Looks(logits(0), logits(1), logits(2))
    output, targets = GivenLabels()(look, TARGETS)
    assert [known.label[0].item() for known in look.told] == [0, 1, 3]
    assert look.told[0].label[1] == 2
    assert output.logits.shape == (1, 2, 3 * QUERIES, CLASSES) and output.layout.queries == 3 * QUERIES
    for i, label in enumerate((0, 1, 3)):
        part = output.logits[0, 0, i * QUERIES : (i + 1) * QUERIES]
        torch.testing.assert_close(part[:, label], logits(i)[0, :, label])
        assert (part.sigmoid().sum(1) == part[:, label].sigmoid()).all()
    assert (output.logits[0, 1, QUERIES:] == HIDDEN).all()  # the second image has one class, and one look that counts
    found = detect(output, [(10, 10), (10, 10)], top=100)
    assert sorted(set(found[0].labels.tolist())) == [0, 1, 3] and len(found[0].labels) == 9
    assert found[1].labels.tolist() == [2] * 3  # hidden scores are no detections
    assert targets == TARGETS


def test_labels_may_come_from_elsewhere_and_may_be_none():
    look = Looks(logits(0), logits(1))
    output, _ = GivenLabels({5: [2, 1]})(look, TARGETS)
    assert [known.label[0].item() for known in look.told] == [2, 1]
    assert (output.logits[0, 1] == HIDDEN).all()  # nothing is said of the second image


def test_labels_that_are_not_told_only_leave_scores_out():
    look = Looks(logits(0))
    output, _ = GivenLabels(told=False)(look, TARGETS)
    assert look.told == [None]
    torch.testing.assert_close(output.logits[0, 0, :, [0, 1, 3]], logits(0)[0, :, [0, 1, 3]])
    assert (output.logits[0, 0, :, 2] == HIDDEN).all() and (output.logits[0, 1, :, [0, 1, 3]] == HIDDEN).all()


def test_no_round_is_plain_inference():
    one, other = Progressive(0, 0.5, CLASSES)(Looks(logits(0)), TARGETS), Plain()(Looks(logits(0)), TARGETS)
    for name in ("logits", "boxes", "anchors"):
        assert torch.equal(getattr(one.output, name), getattr(other.output, name))


def test_what_is_sure_is_told_and_stays_as_it_was_found():
    first = torch.full((2, QUERIES, CLASSES), -5.0)
    first[0, 1, 3], first[0, 2, 0] = 2.0, -0.5
    second = torch.full((2, QUERIES, CLASSES), -5.0)
    second[0, 0, 1] = 1.0
    look = Looks(first, second, logits(9) - 9)
    output, _ = Progressive(2, 0.5, CLASSES)(look, TARGETS)
    assert look.told[0] is None
    assert look.told[1].denoise.labels.tolist() == [[3], [CLASSES]] and not look.told[1].isolated
    boxes = [torch.rand(1, 2, QUERIES, 4, generator=torch.Generator().manual_seed(i)) for i in (1, 2, 3)]
    torch.testing.assert_close(look.told[1].denoise.boxes[0], boxes[0][0, 0, [1]])
    assert look.told[2].denoise.labels.tolist()[0] == [3, 1]  # those of both rounds
    scores = output.logits[0, 0].sigmoid()
    assert (scores[:QUERIES].amax(1) > 0.5).tolist() == [False, True, False]
    assert scores[0].sum() == scores[2].sum() == 0  # what was not sure is asked for again
    torch.testing.assert_close(output.boxes[0, 0], torch.cat([b[0, 0] for b in boxes]))
    torch.testing.assert_close(output.logits[0, 0, -QUERIES:], (logits(9) - 9)[0])


PLACES = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.3, 0.31, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])  # the first two overlap by IoU 0.9


class Crowded(Looks):
    """Every answer has the boxes of PLACES."""

    def __call__(self, known):
        return replace(super().__call__(known), boxes=PLACES.expand(1, 1, -1, -1))


@pytest.mark.parametrize("scores", [(2.0, 1.0, 0.5), (1.0, 2.0, 0.5)])
def test_an_object_is_told_once_whatever_finds_it_and_in_which_round(scores):
    everywhere = torch.tensor(scores)[None, :, None].repeat(1, 1, CLASSES)
    look = Crowded(everywhere, everywhere, everywhere)
    output, _ = Progressive(5, 0.5, CLASSES)(look, [target(0)])
    assert len(look.told) == 2  # then there is nothing new
    best = int(scores[1] > scores[0])
    torch.testing.assert_close(look.told[1].denoise.boxes[0], PLACES[[best, 2]])
    counted = output.logits[0, 0, :, 0] > HIDDEN
    assert counted.tolist() == [best == 0, best == 1, True, True, True, True]  # of the last look all count


@pytest.mark.parametrize("scores", [(2.0, 1.0, 0.5), (1.0, 2.0, 0.5)])
def test_suppression_leaves_the_best_of_each_place(scores):
    look = Crowded(torch.tensor(scores)[None, :, None].repeat(1, 1, CLASSES))
    output, _ = Suppressed()(look, [target(0)])
    assert look.told == [None]
    assert (output.logits[0, 0, :, 0] > HIDDEN).tolist() == [scores[0] > scores[1], scores[1] > scores[0], True]


def test_rounds_end_where_nothing_is_sure():
    look = Looks(torch.full((2, QUERIES, CLASSES), -5.0))
    output, _ = Progressive(7, 0.5, CLASSES)(look, TARGETS)
    assert len(look.told) == 1 and output.logits.shape[2] == QUERIES


@pytest.mark.parametrize("ask", [Plain(), GivenLabels(), Progressive(2, 0.1, CLASSES), GivenObjects(frozenset({0}), CLASSES)])
def test_an_empty_image_can_be_asked_for(ask):
    empty = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), 1)
    answer = ask(Looks(*(logits(i, images=1) for i in range(4))), [empty])
    assert answer.output.logits.isfinite().all()
