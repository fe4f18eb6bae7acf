"""The encoder's proposals: where there can be a box, which are the best, what they are taught, whatever the padding."""

import pytest
import torch

from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.deformable import Pyramid
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.hosts.deformable_detr import DeformableDetrConfig
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.proposals import Proposals, token_boxes
from dndetr.models.structures import FieldErrors, Output, Target

WIDTH, CLASSES = 32, 4


def pyramid(sizes: list[tuple[int, int]], canvases: list[tuple[int, int]], seed: int = 0) -> Pyramid:
    """One image whose levels have these sizes, each in the corner of its canvas; what is in the padding is large."""
    rng = torch.Generator().manual_seed(seed)
    tokens, padding, valid = [], [], []
    for (h, w), (height, width) in zip(sizes, canvases, strict=True):
        level, hidden = torch.full((height, width, WIDTH), 9.0), torch.ones(height, width, dtype=torch.bool)
        level[:h, :w], hidden[:h, :w] = torch.randn(h, w, WIDTH, generator=rng), False
        tokens.append(level.flatten(0, 1))
        padding.append(hidden.flatten())
        valid.append(torch.tensor([w / width, h / height]))
    x, hidden = torch.cat(tokens)[None], torch.cat(padding)[None]
    return Pyramid(x, torch.zeros_like(x), hidden if hidden.any() else None, canvases, torch.stack(valid)[None])


def proposals(queries: int = 6, **options) -> Proposals:
    torch.manual_seed(0)
    module = Proposals(WIDTH, CLASSES, queries, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


SIZES = [(5, 7), (3, 4)]
CANVASES = [SIZES, [(5, 12), (3, 6)], [(8, 9), (4, 5)]]


@pytest.mark.parametrize("queries", [6, 47, 60], ids=["few", "as many as tokens", "more than tokens"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_padding_changes_nothing(agnostic, queries):
    """Neither the best boxes, nor what they are taught, also where an image has not as many tokens as there are queries."""
    module, target = proposals(queries, agnostic=agnostic), Target(torch.tensor([1, 3]), torch.rand(2, 4) * 0.3 + 0.3)
    found = []
    for canvases in CANVASES:
        image = pyramid(SIZES, canvases)
        boxes, taught = module(image.tokens, image)
        nothing = Output(
            torch.full((1, 1, 2, CLASSES), -99.0), torch.rand(1, 1, 2, 4), None, QueryLayout(0, 0, 2), proposals=taught
        )
        losses = Criterion(LossConfig(), Matcher(MatchConfig()))(nothing, Wanted([target]), 2)
        found.append((boxes, *(losses.parts[f"{name}_enc"] for name in ("cls", "box", "giou"))))
    assert found[0][0].shape == (1, queries, 4)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_a_proposal_is_around_its_pixel_and_grows_with_the_level():
    boxes, possible = token_boxes(pyramid(SIZES, CANVASES[1]))
    boxes, possible = boxes[0].sigmoid(), possible[0, :, 0]
    torch.testing.assert_close(boxes[1], torch.tensor([1.5 / 7, 0.5 / 5, 0.05, 0.05]))
    torch.testing.assert_close(boxes[5 * 12 + 6], torch.tensor([0.5 / 4, 1.5 / 3, 0.1, 0.1]))
    assert possible.sum() == 5 * 7 + 3 * 4 and possible[6] and not possible[7]


@pytest.mark.parametrize("width", [50, 60, 85, 90, 97])
def test_pixels_too_close_to_a_border_propose_nothing_on_any_canvas(width):
    """Of 50 pixels the first has its centre at 0.01 exactly, and rounding would decide by the padding."""
    _, possible = token_boxes(pyramid([(9, 50)], [(9, width)]))
    inside = possible.view(9, width)[:, :50]
    assert not inside[:, [0, -1]].any() and inside[:, 1:-1].all()


def test_there_is_no_gradient_through_the_best_boxes():
    image = pyramid(SIZES, SIZES)
    boxes, taught = proposals()(image.tokens, image)
    assert not boxes.requires_grad and taught.boxes.requires_grad and taught.logits.requires_grad


def test_the_best_of_all_classes_or_of_the_first():
    image = pyramid(SIZES, CANVASES[1])
    _, taught = proposals(queries=200, agnostic=True)(image.tokens, image)
    logits = taught.logits[0, 0]  # of all tokens, in their order
    for agnostic in (True, False):
        boxes, taught = proposals(agnostic=agnostic)(image.tokens, image)
        scores = logits[:, 0] if agnostic else logits.amax(-1)
        best = scores.topk(6).values
        if agnostic:
            found = [taught.logits[0, 0, (taught.boxes[0, 0] - box.sigmoid()).abs().sum(-1).argmin(), 0] for box in boxes[0]]
            torch.testing.assert_close(torch.stack(found), best)
        else:
            torch.testing.assert_close(taught.logits[0, 0].amax(-1), best)


def test_asked_for_any_object_the_encoder_learns_one_class():
    """The class of an object does not matter then, nor which classes are taught; else it does."""
    image = pyramid(SIZES, SIZES)
    boxes = torch.rand(2, 4) * 0.3 + 0.3
    for agnostic in (True, False):
        _, taught = proposals(agnostic=agnostic)(image.tokens, image)
        nothing = Output(
            torch.full((1, 1, 2, CLASSES), -99.0), torch.rand(1, 1, 2, 4), None, QueryLayout(0, 0, 2), proposals=taught
        )
        criterion = Criterion(LossConfig(), Matcher(MatchConfig()))
        wanted = [Wanted([Target(torch.tensor(labels), boxes)]) for labels in ([1, 1], [2, 3])]
        wanted.append(wanted[0]._replace(taught=torch.tensor([False, True, True, True])))
        first, *others = [criterion(nothing, each, 2).parts["cls_enc"] for each in wanted]
        assert all((other == first) == agnostic for other in others)


def test_with_class_embeddings_only_classes_have_vectors():
    vectors = torch.randn(CLASSES, 12)
    image = pyramid(SIZES, SIZES)
    _, of_classes = proposals(embeddings=vectors)(image.tokens, image)
    _, of_any = proposals(agnostic=True, embeddings=vectors)(image.tokens, image)
    assert (of_classes.classes, of_any.classes) == (CLASSES, 1)


def test_proposals_find_what_the_decoder_is_told():
    """All objects of an image, divided by their own number."""
    image = pyramid(SIZES, SIZES)
    _, taught = proposals()(image.tokens, image)
    output = Output(torch.zeros(1, 1, 2, CLASSES), torch.rand(1, 1, 2, 4), None, QueryLayout(0, 0, 2), proposals=taught)
    every = Target(torch.tensor([1, 2, 3]), torch.rand(3, 4) * 0.3 + 0.3)
    some = Target(every.labels[:1], every.boxes[:1])
    criterion = Criterion(LossConfig(), Matcher(MatchConfig()))
    told = criterion(output, Wanted([some], present=[every]), 1, present=3)
    alone, whole = criterion(output, Wanted([some]), 1), criterion(output, Wanted([every]), 3)
    assert told.parts["box_enc"] == whole.parts["box_enc"] and told.parts["cls_enc"] == whole.parts["cls_enc"]
    assert told.parts["box_0"] == alone.parts["box_0"] and told.parts["box_enc"] != alone.parts["box_enc"]


@pytest.mark.parametrize("name", ["two_stage", "look_twice"])
@pytest.mark.parametrize("other", [{"decoder": "dense"}, {"query": "point", "refine": False}])
def test_both_need_boxes_that_are_refined_by_deformable_attention(name, other):
    with pytest.raises(FieldErrors, match=f"^{name} must be false unless decoder is deformable and refine"):
        DeformableDetrConfig(**{name: True}, **other)


def test_two_stages_have_no_groups_of_matching_queries():
    with pytest.raises(FieldErrors, match="groups must be 1 where query is point or two_stage is true"):
        DeformableDetrConfig(two_stage=True, groups=2)
