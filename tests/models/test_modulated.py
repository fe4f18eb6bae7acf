"""SMCA's parts against loops written out: attention around points, scales weighed by the query, and their exchange."""

import math

import pytest
import torch

from dndetr.models.backbone import BackboneConfig, build_backbone
from dndetr.models.deformable import Pyramid
from dndetr.models.hosts.smca import Smca, SmcaConfig
from dndetr.models.modulated import ModulatedLayer, Scale, ScaleEncoder
from dndetr.models.position import encode_image
from dndetr.models.structures import Feature, Images

WIDTH, HEADS = 8, 2


def a_scale(h: int, w: int, stride: int) -> Scale:
    padding = torch.zeros(1, h, w, dtype=torch.bool)
    padding[:, :, -1] = True
    size = torch.tensor([[w - 1.3, float(h)]])
    return Scale(torch.randn(1, h * w, WIDTH), torch.randn(1, h * w, WIDTH), padding.flatten(1), (h, w), size, stride)


def attention(layer: ModulatedLayer, x, position, scale: Scale, i: int, center, query: int) -> torch.Tensor:
    """What one query finds in one scale, token by token."""
    told = layer.modulation.norm(x + position)
    part = slice(i * HEADS * 2, (i + 1) * HEADS * 2)
    offsets = layer.modulation.offsets(told)[0, query, part].view(HEADS, 2)
    falloff = layer.modulation.falloff(told)[0, query, part].view(HEADS, 2)
    asked = layer.norm1(x + layer.self_attention(x, position))
    cross, each, found = layer.cross_attention, WIDTH // HEADS, []
    for head in range(HEADS):
        own = slice(head * each, (head + 1) * each)
        q = cross.q(asked + position)[0, query, own]
        logits, values = [], []
        for token in range(len(scale.tokens[0])):
            if scale.padding[0, token]:
                continue
            row, column = divmod(token, scale.shape[1])
            px, py = center[0, query] * scale.size[0] + offsets[head]
            sx, sy = falloff[head] ** 2
            away = (sx * (px - column) ** 2 + sy * (py - row) ** 2) * scale.stride / 32
            k = cross.k(scale.tokens[0, token] + scale.position[0, token])[own]
            logits.append(q @ k / math.sqrt(each) - away / 8)
            values.append(cross.v(scale.tokens[0, token])[own])
        found.append(torch.stack(logits).softmax(0) @ torch.stack(values))
    return torch.cat(found)


@pytest.mark.parametrize("scales", [1, 3])
def test_a_layer_attends_around_points_in_each_scale_and_weighs_the_scales(scales):
    torch.manual_seed(0)
    layer = ModulatedLayer(width=WIDTH, heads=HEADS, ffn=16, dropout=0.0, scales=scales)
    seen = [a_scale(4, 5, 16), a_scale(3, 4, 32), a_scale(2, 3, 64)][-scales:]
    x, position, center = torch.randn(1, 3, WIDTH), torch.randn(1, 3, WIDTH), torch.rand(1, 3, 2)
    output = layer(x, position, seen, center, None)
    for query in range(3):
        told = layer.modulation.norm(x + position)[0, query]
        weights = [1.0] if scales == 1 else layer.modulation.weights(told).softmax(-1)
        found = [
            w * attention(layer, x, position, s, i, center, query) for i, (w, s) in enumerate(zip(weights, seen, strict=True))
        ]
        asked = layer.norm1(x + layer.self_attention(x, position))[:, query]
        wanted = layer.feed_forward(layer.norm2(asked + layer.cross_attention.out(sum(found))))
        torch.testing.assert_close(output[:, query], wanted, rtol=1e-4, atol=1e-5)


def pyramid(h: int = 8, w: int = 12, scales: int = 3, batch: int = 1) -> Pyramid:
    shapes = [(math.ceil(h / 2**i), math.ceil(w / 2**i)) for i in range(scales)]
    count = sum(a * b for a, b in shapes)
    tokens, position = torch.randn(batch, count, WIDTH), torch.randn(batch, count, WIDTH)
    return Pyramid(tokens, position, None, shapes, torch.ones(batch, scales, 2))


def encoder(layers: int = 1, scales: int = 3) -> ScaleEncoder:
    torch.manual_seed(0)
    return ScaleEncoder(layers=layers, width=WIDTH, ffn=16, dropout=0.0, scales=scales)


def test_a_layer_of_the_encoder_by_its_convolutions():
    image, (layer,) = pyramid(), encoder().layers
    entered = layer.enter(image.tokens + image.position)
    fine, middle, coarse = (
        part.mT.unflatten(2, shape) for part, shape in zip(entered.split(image.sizes, 1), image.shapes, strict=True)
    )

    def up(x):
        return torch.nn.Upsample(scale_factor=2, mode="bilinear")(x)

    mixed = [
        layer.own[0](fine) + up(layer.own[1](middle)),
        layer.own[1](middle) + layer.down(fine) + up(layer.own[2](coarse)),
        layer.own[2](coarse) + layer.down(middle),
    ]
    mixed = layer.leave(torch.cat([each.flatten(2).mT for each in mixed], dim=1))
    wanted = layer.feed_forward(layer.norm(image.tokens + mixed))
    torch.testing.assert_close(encoder()(image), wanted, rtol=1e-4, atol=1e-5)


def test_scales_exchange_with_their_neighbours_layer_by_layer():
    image = pyramid()
    changed = image.tokens.clone()
    changed[:, 0] += 1
    for layers, reached in (1, [True, True, False]), (2, [True, True, True]):
        encode = encoder(layers)
        moved = encode(image) - encode(Pyramid(changed, image.position, None, image.shapes, image.valid))
        assert [bool((part.abs() > 1e-6).any()) for part in moved.split(image.sizes, 1)] == reached


def test_an_uneven_image_is_encoded_alike_on_every_canvas():
    """7 tokens are halved to 4 and 2; on a canvas of 10 they lie among 10, 5 and 3."""
    alone, canvas = pyramid(7, 5), pyramid(10, 11)
    hidden = [torch.ones(1, *shape, dtype=torch.bool) for shape in canvas.shapes]
    filled = {}
    for name in ("tokens", "position"):
        own = getattr(alone, name).split(alone.sizes, 1)
        maps = [
            part.mT.unflatten(2, shape)
            for part, shape in zip(getattr(canvas, name).split(canvas.sizes, 1), canvas.shapes, strict=True)
        ]
        for each, part, (h, w), padding in zip(maps, own, alone.shapes, hidden, strict=True):
            each[..., :h, :w], padding[:, :h, :w] = part.mT.unflatten(2, (h, w)), False
        filled[name] = torch.cat([each.flatten(2).mT for each in maps], dim=1)
    padding = torch.cat([each.flatten(1) for each in hidden], dim=1)
    encode = encoder(layers=3)
    found = encode(Pyramid(filled["tokens"], filled["position"], padding, canvas.shapes, canvas.valid))
    torch.testing.assert_close(found[~padding], encode(alone)[0], rtol=1e-4, atol=1e-5)


def smca(scales: int) -> Smca:
    config = SmcaConfig(scales=scales, queries=5, hidden=WIDTH, heads=HEADS, ffn=16, encoder_layers=1, decoder_layers=2)
    return Smca(config, backbone=build_backbone(BackboneConfig("small", weights="none")), num_classes=3).eval()


@pytest.mark.parametrize(("scales", "strides"), [(1, [8]), (4, [16, 16, 32, 64])])
def test_sizes_are_those_of_the_image_and_not_rounded(scales, strides):
    """And the finest of several scales is looked at in half its resolution."""
    model, seen = smca(scales), []
    model.decoder.register_forward_pre_hook(lambda module, args: seen.extend(args[1]))
    padding = torch.zeros(1, 64, 96, dtype=torch.bool)
    padding[:, 60:], padding[:, :, 50:] = True, True
    output = model(Images(torch.zeros(1, 3, 64, 96), padding))
    assert [scale.stride for scale in seen] == strides
    for scale, stride in zip(seen, strides, strict=True):
        assert scale.shape == (math.ceil(64 / stride), math.ceil(96 / stride))
        torch.testing.assert_close(scale.size, torch.tensor([[50 / stride, 60 / stride]]))
    if scales > 1:  # its positions are made anew
        hidden = torch.ones(1, 4, 6, dtype=torch.bool)
        hidden[:, :4, :4] = False
        position = encode_image(Feature(torch.zeros(1, WIDTH, 4, 6), hidden), WIDTH, 10000.0) + model.neck.level[0]
        torch.testing.assert_close(seen[0].position, position)
    assert output.anchors.shape == (1, 5, 2)


def test_the_point_of_the_first_layer_is_where_boxes_start_and_attention_begins_round():
    model = smca(1)
    torch.nn.init.zeros_(model.heads.box[0].layers[-1].weight)
    torch.nn.init.zeros_(model.heads.box[0].layers[-1].bias)
    output = model(Images(torch.randn(1, 3, 64, 96)))
    torch.testing.assert_close(
        output.boxes, torch.cat((output.anchors, torch.full_like(output.anchors, 0.5)), dim=-1).expand(2, -1, -1, -1)
    )
    told = model.decoder.layers[0].modulation.norm(model.position)
    torch.testing.assert_close(output.anchors[0], model.decoder.center(told).sigmoid())
    for layer in model.decoder.layers:
        assert torch.equal(layer.modulation.falloff(torch.randn(3, WIDTH)), torch.ones(3, HEADS * 2))
