"""Heads, position encodings and attention, by formulas written out."""

import math

import pytest
import torch
from torch import nn

from dndetr.models.heads import MLP, DetectionHeads, initial_anchors
from dndetr.models.position import encode_anchors, encode_image
from dndetr.models.structures import Feature
from dndetr.models.transformer import Attention, DenseEncoder, FeedForward, attend, init_xavier


def heads(shared: bool = False, eps: float = 1e-3) -> DetectionHeads:
    torch.manual_seed(0)
    return DetectionHeads(8, 5, 3, shared=shared, eps=eps)


def shaken(module: nn.Module) -> nn.Module:
    """No weight stays at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def test_every_class_begins_at_a_hundredth():
    for layer in range(3):
        torch.testing.assert_close(heads().logits(layer, torch.zeros(2, 8)).sigmoid(), torch.full((2, 5), 0.01))


def test_boxes_begin_at_their_reference():
    reference = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.9, 0.01, 0.99]])
    for layer in range(3):
        torch.testing.assert_close(heads().boxes(layer, torch.randn(2, 8), reference), reference)


def test_a_reference_on_the_border_is_kept_eps_away():
    reference = torch.tensor([[0.0, 1.0, 0.5, 0.5]])
    for eps in (1e-3, 1e-5):
        x, y = heads(eps=eps).boxes(0, torch.randn(1, 8), reference)[0, :2].tolist()
        assert x == pytest.approx(eps, rel=0.01) and 1 - y == pytest.approx(eps, rel=0.02)


def test_boxes_move_in_logits_and_points_take_their_size_from_the_head():
    head, x = shaken(heads()), torch.randn(4, 8)
    delta, reference = head.box[1](x), torch.rand(4, 4) * 0.8 + 0.1
    expected = (delta + torch.logit(reference)).sigmoid()
    torch.testing.assert_close(head.boxes(1, x, reference), expected)
    points = head.boxes(1, x, reference[:, :2])
    torch.testing.assert_close(points[:, :2], expected[:, :2])
    torch.testing.assert_close(points[:, 2:], delta[:, 2:].sigmoid())


def test_heads_compute_boxes_in_full_precision():
    boxes = heads().bfloat16().boxes(0, torch.randn(1, 8).bfloat16(), torch.tensor([[0.1234567] * 4]))
    torch.testing.assert_close(boxes, torch.tensor([[0.1234567] * 4]))


def test_shared_heads_are_one_copy():
    x, reference = torch.randn(2, 8), torch.full((2, 4), 0.5)
    shared, own = shaken(heads(shared=True)), shaken(heads())
    assert torch.equal(shared.logits(0, x), shared.logits(2, x))
    assert torch.equal(shared.boxes(0, x, reference), shared.boxes(2, x, reference))
    assert not torch.allclose(own.logits(0, x), own.logits(2, x))
    assert not torch.allclose(own.boxes(0, x, reference), own.boxes(2, x, reference))
    assert 3 * sum(p.numel() for p in shared.parameters()) == sum(p.numel() for p in own.parameters())


def test_an_mlp_has_no_activation_at_its_end():
    torch.manual_seed(0)
    mlp = MLP(3, 4, 2)
    x = torch.randn(50, 3)
    first, last = mlp.layers
    torch.testing.assert_close(mlp(x), last(first(x).clamp(min=0)))
    assert mlp(x).min() < 0 and mlp(x).shape == (50, 2)


@pytest.mark.parametrize("queries", [1, 2, 3, 7, 9, 49, 50, 100, 300, 900])
def test_grid_anchors_are_distinct_and_inside(queries):
    anchors = initial_anchors(queries, "grid").sigmoid()
    assert anchors.shape == (queries, 4)
    assert anchors.min() > 0 and anchors.max() < 1
    assert len({(round(x, 4), round(y, 4)) for x, y in anchors[:, :2].tolist()}) == queries
    torch.testing.assert_close(anchors[:, 2:], torch.full((queries, 2), 0.22))


@pytest.mark.parametrize("queries", [49, 50, 100, 300, 900])
def test_grid_anchors_cover_the_image(queries):
    """Every point of the image lies in a box, for the numbers of queries of our presets and a square."""
    anchors = initial_anchors(queries, "grid").sigmoid()
    side = (torch.arange(64) + 0.5) / 64
    points = torch.cartesian_prod(side, side)
    inside = ((points[:, None] - anchors[:, :2]).abs() <= anchors[:, 2:] / 2).all(-1).any(-1)
    assert inside.float().mean() == 1


def test_random_anchors_are_normal_logits():
    torch.manual_seed(0)
    anchors = initial_anchors(3000, "random")
    assert anchors.shape == (3000, 4)
    assert abs(anchors.mean()) < 0.05 and abs(anchors.std() - 1) < 0.05


def test_anchors_are_encoded_as_y_x_w_h():
    """Four channels a coordinate: frequencies 1 and 1 / 100, sine and cosine of each."""

    def coordinate(value):
        angle = 2 * math.pi * value
        return [math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)]

    x, y, w, h = 0.1, 0.35, 0.6, 0.8
    expected = [*coordinate(y), *coordinate(x), *coordinate(w), *coordinate(h)]
    torch.testing.assert_close(encode_anchors(torch.tensor([x, y, w, h]), 4), torch.tensor(expected))
    torch.testing.assert_close(encode_anchors(torch.tensor([x, y]), 4), torch.tensor(expected[:8]))
    assert encode_anchors(torch.rand(2, 7, 4), 6).shape == (2, 7, 24)


def grid(height: int, width: int, padding=None, offset=0.0) -> torch.Tensor:
    """(h, w, 8) encoding of one feature map at a temperature of 4, so that the second frequency is a half."""
    feature = Feature(torch.zeros(1, 3, height, width), padding)
    return encode_image(feature, 8, temperature=4, offset=offset).view(height, width, 8)


def test_an_image_is_encoded_by_the_share_of_pixels_counted_from_one():
    """In a 2 x 4 map the first pixel lies at y = 1 / 2 and x = 1 / 4 of a turn, the last one at a whole turn."""
    half = math.sqrt(0.5)
    first = [0, -1, 1, 0, 1, 0, half, half]  # pi and pi / 2, then pi / 2 and pi / 4
    last = [0, 1, 0, -1, 0, 1, 0, -1]
    encoded = grid(2, 4)
    torch.testing.assert_close(encoded[0, 0], torch.tensor(first, dtype=torch.float32), rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded[1, 3], torch.tensor(last, dtype=torch.float32), rtol=0, atol=1e-5)


def test_an_offset_of_half_a_pixel_counts_centres():
    torch.testing.assert_close(grid(1, 1, offset=-0.5), grid(2, 2)[:1, :1], rtol=0, atol=1e-5)


def test_padding_does_not_move_positions():
    padding = torch.ones(1, 5, 7, dtype=torch.bool)
    padding[:, :3, :4] = False
    torch.testing.assert_close(grid(5, 7, padding)[:3, :4], grid(3, 4))
    assert not torch.allclose(grid(5, 7)[:3, :4], grid(3, 4))
    assert torch.equal(grid(5, 7, torch.zeros(1, 5, 7, dtype=torch.bool)), grid(5, 7))


def softmax_attention(q, k, v, heads, blocked=None):
    parts = []
    for query, key, value in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True):
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        if blocked is not None:
            scores = scores.masked_fill(blocked, -math.inf)
        parts.append(scores.softmax(-1) @ value)
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("shape", [None, (1, 5, 7), (2, 1, 7), (2, 5, 7)])
def test_attention_is_softmax_by_head(shape):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 6)
    blocked = None if shape is None else torch.rand(shape) < 0.5
    if blocked is not None:
        blocked[..., 0] = False
    out = attend(q, k, v, 3, blocked)
    assert out.shape == (2, 5, 6)
    torch.testing.assert_close(out, softmax_attention(q, k, v, 3, blocked))


def test_self_attention_is_torchs_with_positions_on_queries_and_keys():
    torch.manual_seed(0)
    ours, theirs = shaken(Attention(12, 3)), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((ours.q.weight, ours.k.weight, ours.v.weight)))
        theirs.in_proj_bias.copy_(torch.cat((ours.q.bias, ours.k.bias, ours.v.bias)))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, position, blocked = torch.randn(2, 6, 12), torch.randn(2, 6, 12), torch.eye(6).roll(1, 0).bool()
    expected, _ = theirs(x + position, x + position, x, attn_mask=blocked)
    torch.testing.assert_close(ours(x, position, blocked[None]), expected)


def test_feed_forward_adds_and_normalises():
    torch.manual_seed(0)
    layer, x = shaken(FeedForward(6, 10, 0.0, nn.ReLU)), torch.randn(3, 6)
    inner = (x @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0) @ layer.linear2.weight.T + layer.linear2.bias
    torch.testing.assert_close(layer(x), layer.norm(x + inner))


def encoder(layers: int) -> DenseEncoder:
    torch.manual_seed(0)
    return shaken(DenseEncoder(width=8, heads=2, ffn=12, layers=layers, dropout=0.0))


def test_no_layers_are_the_identity():
    empty, tokens = encoder(0), torch.randn(2, 5, 8)
    assert torch.equal(empty(tokens, torch.randn(2, 5, 8), None), tokens)
    assert list(empty.parameters()) == []


def test_the_encoder_scales_positions_by_what_the_tokens_hold():
    both, tokens, position = encoder(2), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    x = tokens
    for layer in both.layers:
        x = layer.norm(x + layer.attention(x, position * both.position_scale(x)))
        x = layer.feed_forward(x)
    torch.testing.assert_close(both(tokens, position, None), x)


def test_the_encoder_does_not_look_under_the_padding():
    model, tokens, position = encoder(2), torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    padding = torch.tensor([[False, False, False, True, True]])
    alone = model(tokens[:, :3], position[:, :3], None)
    torch.testing.assert_close(model(tokens, position, padding)[:, :3], alone)
    assert not torch.allclose(model(tokens, position, None)[:, :3], alone)


def test_xavier_leaves_vectors_alone():
    layer = nn.Linear(30, 50)
    bias = layer.bias.clone()
    nn.init.zeros_(layer.weight)
    init_xavier(layer)
    bound = math.sqrt(6 / 80)
    assert torch.equal(layer.bias, bias)
    assert 0.9 * bound < layer.weight.abs().max() <= bound
