"""What Anchor DETR's queries start from, how it begins, and how it brings feature maps to one resolution."""

from __future__ import annotations

import pytest
import torch

from dndetr.models.backbone import BackboneConfig
from dndetr.models.denoising.queries import Known
from dndetr.models.hosts import build_detector
from dndetr.models.hosts.anchor_detr import AnchorDetrConfig, Levels
from dndetr.models.structures import Feature, FieldErrors
from tests.hosts.test_contract import QUERIES, detector, known, objects


def test_a_noised_object_is_its_label_at_the_centre_of_its_box():
    """And not a pattern; what is no object is nothing but patterns."""
    model, told = detector("anchor"), known(objects(2, 4))
    noised = told.denoise
    queries = model.queries(2, told)
    count = noised.valid.shape[1]
    assert torch.equal(queries.position[:, :count], noised.boxes[..., :2])
    assert torch.equal(queries.content[:, :count][noised.valid], model.label(noised.labels, 1.0)[noised.valid])
    assert torch.equal(queries.content[:, count:], model.patterns.table.repeat_interleave(QUERIES, 0).expand(2, -1, -1))
    assert torch.equal(queries.position[:, count:], model.points.repeat(3, 1).expand(2, -1, -1))


def test_a_class_to_look_for_joins_the_patterns():
    model, labels = detector("anchor"), torch.tensor([1, 3])
    content = model.queries(2, Known(label=labels)).content
    patterns = model.patterns.table.repeat_interleave(QUERIES, 0)
    torch.testing.assert_close(content, patterns + model.label(labels, 1.0)[:, None])


def test_points_of_a_grid_do_not_learn_and_are_the_same_in_no_other_group():
    model = detector("anchor, grid, 3 levels")
    assert "points" not in dict(model.named_parameters()) and "points" not in model.state_dict()
    across = torch.tensor([1 / 6, 1 / 2, 5 / 6])
    torch.testing.assert_close(model.points.detach(), torch.cartesian_prod(across, across))
    with pytest.raises(FieldErrors, match="groups must be 1 with anchors: grid"):
        AnchorDetrConfig(anchors="grid", groups=2)


def test_it_begins_as_the_reference():
    """Attention as PyTorch's own, with one matrix for all that is projected; small boxes at the points."""
    torch.manual_seed(0)
    model = build_detector(AnchorDetrConfig(queries=9), BackboneConfig("small", weights="none"), 5)
    for attention, stacked in ((model.encoder.layers[0].attention, 5), (model.decoder.layers[0].self_attention, 3)):
        *projections, out = (module for module in attention.children() if isinstance(module, torch.nn.Linear))
        assert len(projections) == stacked
        for projection in projections:
            assert projection.weight.abs().max().item() == pytest.approx((6 / ((stacked + 1) * 256)) ** 0.5, rel=1e-3)
            assert not projection.bias.any()
        assert out.weight.abs().max().item() == pytest.approx(1 / 16, rel=1e-3) and not out.bias.any()
    assert model.heads.box[0].layers[-1].bias.tolist() == [0, 0, -2, -2]
    assert model.points.min() >= 0 and model.points.max() <= 1


@pytest.mark.parametrize(
    ("strides", "levels", "chosen", "kernels"),
    [
        ([8, 16, 16], 3, [0, 1, 2], [3, 1, 1]),  # as in the reference
        ([8, 16, 32], 3, [0, 1, 2], [7, 3, 1]),
        ([8, 16, 32], 1, [2], [1]),
        ([8], 2, [0, 0], [1, 1]),
    ],
)
@pytest.mark.parametrize("canvas", [(64, 96), (65, 33)])
def test_levels_come_at_the_resolution_of_the_last(canvas, strides, levels, chosen, kernels):
    torch.manual_seed(0)
    model = Levels([4] * len(strides), strides, 8, levels)
    assert model.chosen == chosen and [project.conv.kernel_size[0] for project in model.project] == kernels
    padding = torch.zeros(2, *canvas, dtype=torch.bool)
    padding[1, 40:], padding[1, :, 25:] = True, True
    features = []
    for stride in strides:
        hidden = padding[:, ::stride, ::stride]
        features.append(Feature(torch.randn(2, 4, *hidden.shape[1:]), hidden))
    tokens, found = model(features)
    last = features[-1].padding
    assert tokens.shape == (2 * levels, *last.shape[1:], 8)
    assert torch.equal(found.y[:, :, None] | found.x[:, None], last.repeat_interleave(levels, 0))
