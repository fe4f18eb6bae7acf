"""Every check of the contract fails on a detector that breaks it: a check that cannot fail would prove nothing."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from dndetr.models import row_column
from dndetr.models.backbone import Backbone
from dndetr.models.criterion import Criterion
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.denoising.noise import NoisedTargets
from dndetr.models.denoising.queries import LabelEmbedding, Queries, plain
from dndetr.models.heads import DetectionHeads
from dndetr.models.hosts import HOSTS, anchor_detr, deformable_detr
from dndetr.models.matcher import Matcher
from dndetr.models.structures import Feature
from dndetr.models.transformer import Attention
from tests.hosts import test_contract as contract


def boxes_without_sigmoid(patch):
    boxes = DetectionHeads.boxes
    patch.setattr(DetectionHeads, "boxes", lambda *a: boxes(*a).logit())


def a_head_that_nothing_asks(patch):
    init = DetectionHeads.__init__

    def with_idle(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.idle = torch.nn.Linear(2, 2)

    patch.setattr(DetectionHeads, "__init__", with_idle)


def labels_are_used_only_where_there_are_some(patch):
    """In "++" matching queries have contents of their own: without denoising nothing asks the label table."""
    assemble = deformable_detr.assemble

    def untouched(content, position, known, *, batch, **rest):
        if known is not None and known.denoise is not None:
            return assemble(content, position, known, batch=batch, **rest)
        return plain(content, position, None, batch=batch)

    patch.setattr(deformable_detr, "assemble", untouched)


def everyone_sees_everyone(patch):
    patch.setattr(QueryLayout, "blocked", lambda self, device=None: torch.zeros(self.width, self.width, dtype=torch.bool))


def isolated_whatever_is_asked(patch):
    blocked = QueryLayout.blocked
    patch.setattr(QueryLayout, "blocked", lambda self, device=None: blocked(replace(self, isolated=True), device))


def one_mask_for_all_images(patch):
    blocked = Queries.blocked
    patch.setattr(Queries, "blocked", lambda self: blocked(replace(self, isolated=None)))


def groups_see_each_other(patch):
    def blocked(self, device=None):
        index = torch.arange(self.width)
        return (index >= self.denoising)[:, None] & (index < self.denoising)

    patch.setattr(QueryLayout, "blocked", blocked)


def padding_is_convolved(patch):
    patch.setattr(Backbone, "hide_padding", lambda *args: None)
    scratch = Backbone.forward

    def forward(self, images):  # something lies under the padding, as another normalisation would leave it
        filled = images.pixels if images.padding is None else images.pixels + images.padding[:, None].float()
        return scratch(self, replace(images, pixels=filled))

    patch.setattr(Backbone, "forward", forward)


def padding_is_attended(patch):
    forward = Backbone.forward

    def unpadded(self, images):
        return [Feature(x, None) for x, _ in forward(self, images)]

    patch.setattr(Backbone, "forward", unpadded)


def empty_slots_are_attended(patch):
    patch.setattr(Queries, "blocked", lambda self: self.layout.blocked()[None] if self.layout.denoising else None)


def an_empty_group_is_always_there(patch):
    modules = {sys.modules[config.__module__] for config, _ in HOSTS.values()}
    for module in (module for module in modules if hasattr(module, "assemble")):

        def padded(*args, assemble=module.assemble, **kwargs):
            queries = assemble(*args, **kwargs)
            if queries.layout.denoising:
                return queries
            grown = [torch.cat((x[:, :1], x), dim=1) for x in (queries.content, queries.position)]
            hidden = torch.zeros(grown[0].shape[:2], dtype=torch.bool)
            hidden[:, 0] = True
            return Queries(*grown, QueryLayout(1, 1, queries.layout.queries), hidden)

        patch.setattr(module, "assemble", padded)


def denoising_makes_a_parameter(patch):
    forward = LabelEmbedding.forward

    def counting(self, labels, indicator):
        if not hasattr(self, "told"):
            self.told = torch.nn.Parameter(torch.zeros(1))
        return forward(self, labels, indicator)

    patch.setattr(LabelEmbedding, "forward", counting)


def sizes_come_from_pixels(patch):
    forward = Backbone.forward

    def asking(self, images):
        if images.pixels.sum() > 1e6:
            raise AssertionError
        return forward(self, images)

    patch.setattr(Backbone, "forward", asking)


def matching_groups_see_each_other(patch):
    patch.setattr(Queries, "blocked", lambda self: self.mask(replace(self.layout, matching_groups=1)))


def one_matching_for_all_groups(patch):
    call = Matcher.__call__

    def together(self, output, targets):
        return call(self, replace(output, layout=replace(output.layout, matching_groups=1)), targets)

    patch.setattr(Matcher, "__call__", together)


def proposals_lie_in_the_padding(patch):
    patch.setattr("dndetr.models.proposals.hidden", lambda logits, possible: logits + 9 * ~possible)


def proposals_are_not_taught(patch):
    call = Criterion.__call__
    patch.setattr(Criterion, "__call__", lambda self, output, *args: call(self, replace(output, proposals=None), *args))


def negatives_are_hidden(patch):
    blocked = Queries.blocked

    def without(self):
        if not self.layout.denoising:
            return blocked(self)
        half = torch.arange(self.layout.denoising) % self.layout.slots >= self.layout.slots // 2
        return blocked(self) | torch.nn.functional.pad(half, (0, self.layout.queries))

    patch.setattr(Queries, "blocked", without)


def negatives_are_reconstructed(patch):
    assignment = NoisedTargets.assignment
    patch.setattr(NoisedTargets, "assignment", lambda self: assignment(replace(self, negative=torch.zeros_like(self.valid))))


def negatives_are_not_taught(patch):
    call = Criterion.__call__
    patch.setattr(
        Criterion, "__call__", lambda self, output, wanted, *args: call(self, output, wanted._replace(negatives=None), *args)
    )


BROKEN = (AssertionError, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode)
COPIES = [
    (boxes_without_sigmoid, contract.test_shapes_of_the_output, {}),
    (a_head_that_nothing_asks, contract.test_backward_reaches_every_parameter, {"denoise": True, "counts": (2, 4)}),
    (everyone_sees_everyone, contract.test_nothing_leaks_into_the_matching_part, {}),
    (isolated_whatever_is_asked, contract.test_without_the_mask_it_leaks, {}),
    (one_mask_for_all_images, contract.test_each_image_may_have_its_own_mask, {}),
    (groups_see_each_other, contract.test_groups_do_not_see_each_other, {}),
    (padding_is_convolved, contract.test_an_image_does_not_depend_on_its_neighbours_or_their_padding, {}),
    (padding_is_attended, contract.test_an_image_does_not_depend_on_its_neighbours_or_their_padding, {}),
    (empty_slots_are_attended, contract.test_an_image_does_not_depend_on_its_neighbours_or_their_padding, {}),
    (an_empty_group_is_always_there, contract.test_without_known_there_are_only_matching_queries, {}),
    (denoising_makes_a_parameter, contract.test_denoising_adds_no_parameters_and_leaves_no_trace, {}),
    (sizes_come_from_pixels, contract.test_an_exported_detector_computes_the_same, {}),
]


ANCHOR = ["anchor", "anchor, plain attention", "anchor, grid, 3 levels"]
BREAKABLE = ["dab", "deformable ++", "deformable, dense decoder", "detr", "conditional", "sam", "sam ++", "dino", *ANCHOR]


@pytest.mark.parametrize("form", BREAKABLE)
@pytest.mark.parametrize(("breaks", "check", "options"), COPIES, ids=[breaks.__name__ for breaks, _, _ in COPIES])
def test_a_broken_copy_is_found(monkeypatch, breaks, check, options, form):
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises(BROKEN):
            check(form, **options)


WITHOUT_NOISE = [
    (boxes_without_sigmoid, contract.test_shapes_of_the_output, {}),
    (a_head_that_nothing_asks, contract.test_backward_reaches_every_parameter, {"denoise": False, "counts": (2, 4)}),
    (padding_is_convolved, contract.test_an_image_does_not_depend_on_its_neighbours_or_their_padding, {}),
    (padding_is_attended, contract.test_an_image_does_not_depend_on_its_neighbours_or_their_padding, {}),
    (sizes_come_from_pixels, contract.test_an_exported_detector_computes_the_same, {}),
]


@pytest.mark.parametrize("form", ("smca", "smca, 3 scales"))
@pytest.mark.parametrize(
    ("breaks", "check", "options"), WITHOUT_NOISE, ids=[breaks.__name__ for breaks, _, _ in WITHOUT_NOISE]
)
def test_a_broken_copy_of_a_host_without_denoising_is_found(monkeypatch, breaks, check, options, form):
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises(BROKEN):
            check(form, **options)


def means_see_the_padding(patch):
    patch.setattr(row_column, "mean", lambda tokens, hidden, dim: tokens.mean(dim))


def levels_see_those_of_other_images(patch):
    def forward(self, x, level):
        return Attention.forward(self, x.transpose(0, 1), level.repeat(len(x) // len(level), 1)).transpose(0, 1)

    patch.setattr(anchor_detr.LevelAttention, "forward", forward)


def queries_see_levels_of_other_images(patch):
    patch.setattr(anchor_detr, "for_each_level", lambda x, levels: x.repeat(levels, *[1] * (x.dim() - 1)))


@pytest.mark.parametrize(
    ("breaks", "form"),
    [
        (means_see_the_padding, "anchor"),
        (levels_see_those_of_other_images, "anchor, grid, 3 levels"),
        (queries_see_levels_of_other_images, "anchor, grid, 3 levels"),
    ],
)
def test_what_the_reference_of_anchor_detr_mixes_is_found(monkeypatch, breaks, form):
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises(AssertionError):
            contract.test_an_image_does_not_depend_on_its_neighbours_or_their_padding(form)


@pytest.mark.parametrize("form", contract.GROUPED)
@pytest.mark.parametrize(
    ("breaks", "check"),
    [
        (matching_groups_see_each_other, contract.test_groups_of_matching_queries_do_not_see_each_other),
        (one_matching_for_all_groups, contract.test_each_group_of_matching_queries_finds_every_object),
    ],
)
def test_a_broken_copy_of_groups_is_found(monkeypatch, breaks, check, form):
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises(AssertionError):
            check(form)


@pytest.mark.parametrize("form", contract.TWO_STAGE)
@pytest.mark.parametrize(
    ("breaks", "check", "options"),
    [
        (
            proposals_lie_in_the_padding,
            contract.test_an_image_does_not_depend_on_its_neighbours_or_their_padding,
            {},
        ),
        (proposals_are_not_taught, contract.test_backward_reaches_every_parameter, {"denoise": False, "counts": (0, 0)}),
    ],
)
def test_a_broken_copy_of_two_stages_is_found(monkeypatch, breaks, check, options, form):
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises(AssertionError):
            check(form, **options)


@pytest.mark.parametrize("form", ("dab", "deformable ++", "detr", "dino"))
@pytest.mark.parametrize(
    ("breaks", "check", "options"),
    [
        (negatives_are_hidden, contract.test_negatives_are_queries_like_others, {}),
        (negatives_are_reconstructed, contract.test_negatives_are_taught_to_see_nothing, {"counts": (2, 4)}),
        (negatives_are_not_taught, contract.test_negatives_are_taught_to_see_nothing, {"counts": (2, 4)}),
    ],
)
def test_a_broken_copy_of_negatives_is_found(monkeypatch, breaks, check, options, form):
    with monkeypatch.context() as patch:
        breaks(patch)
        with pytest.raises(AssertionError):
            check(form, **options)


@pytest.mark.parametrize("counts", [(2, 4), (0, 0)])
def test_a_label_table_without_gradient_is_found(monkeypatch, counts):
    labels_are_used_only_where_there_are_some(monkeypatch)
    with pytest.raises(AssertionError, match=r"label\.table\.weight"):
        contract.test_backward_reaches_every_parameter("deformable ++", False, counts)
