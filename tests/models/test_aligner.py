"""SAM-DETR's aligner beyond parity: what padding must not change, and attention that falls off around points."""

import pytest
import torch
from torchvision.ops import roi_align

from dndetr.models.aligner import AlignedDecoder, SemanticAligner, levels_of
from dndetr.models.deformable import Pyramid
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.denoising.queries import Queries
from dndetr.models.gaussian import gaussian
from dndetr.models.heads import DetectionHeads
from dndetr.models.neck import bordered

H, W = 5, 8  # of the image, in tokens


def on_canvas(x: torch.Tensor, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A map (B, D, H, W) in the corner of a canvas that is full of something else, and its padding."""
    canvas, padding = torch.full((*x.shape[:2], h, w), 100.0), torch.ones(len(x), h, w, dtype=torch.bool)
    canvas[..., :H, :W], padding[:, :H, :W] = x, False
    return canvas, padding


def read(x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    return roi_align(x, [boxes], 7, aligned=True)


@pytest.mark.parametrize("canvas", [(H, W), (H + 1, W), (H, W + 3), (2 * H, 2 * W)])
def test_boxes_within_an_image_are_read_as_if_there_was_no_canvas(canvas):
    image, boxes = torch.randn(1, 3, H, W), torch.tensor([[0, 0, W, H], [2.3, 1, W - 0.1, H], [0.5, 0.2, 3, 4], [W, H, W, H]])
    torch.testing.assert_close(read(bordered(*on_canvas(image, *canvas)), boxes), read(image, boxes))
    torch.testing.assert_close(read(bordered(image, None), boxes), read(image, boxes))


@pytest.mark.parametrize("canvas", [(H, W), (H + 1, W + 1), (2 * H, 2 * W)])
def test_boxes_that_reach_further_are_read_alike_on_every_canvas(canvas):
    image, boxes = (
        torch.randn(1, 3, H, W),
        torch.tensor([[-3, -2, W + 4, H + 2.5], [4.2, 3, W + 4.2, H + 3], [W, H, 2 * W, 9.9]]),
    )
    found = read(bordered(*on_canvas(image, *canvas)), boxes)
    torch.testing.assert_close(found, read(bordered(image, None), boxes))
    assert found[1, :, -1].abs().max() == 0  # nothing is there


def levels(batch: int = 2, width: int = 16):
    torch.manual_seed(0)
    shapes = [(8, 8), (4, 4), (2, 2)]
    tokens = sum(h * w for h, w in shapes)
    image = Pyramid(
        torch.randn(batch, tokens, width), torch.randn(batch, tokens, width), None, shapes, torch.ones(batch, 3, 2)
    )
    return levels_of(image, image.tokens)


def test_levels_come_from_coarse_to_fine():
    found = levels()
    assert [level.shape for level in found] == [(2, 2), (4, 4), (8, 8)]
    assert [level.size[0].tolist() for level in found] == [[2, 2], [4, 4], [8, 8]]
    assert torch.equal(found[2].map[0, :, 1, 2], found[2].tokens[0, 10])


def test_two_layers_look_at_each_level_and_the_others_at_the_finest():
    decoder = AlignedDecoder(layers=8, width=16, heads=2, ffn=16, dropout=0.0, smca=True)
    seen = []
    for layer in decoder.layers:
        layer.aligner.register_forward_pre_hook(lambda module, args: seen.append(args[2].shape))
    queries = Queries(torch.zeros(2, 3, 16), torch.randn(2, 3, 4), QueryLayout(0, 0, 3))
    decoder(queries, levels(), DetectionHeads(16, 5, 8, shared=False))
    assert seen == [(2, 2)] * 2 + [(4, 4)] * 2 + [(8, 8)] * 4


def test_salient_points_lie_within_the_box():
    aligner = SemanticAligner(16, 2, smca=True)
    torch.nn.init.normal_(aligner.points.layers[-1].bias, std=3.0)
    reference = torch.tensor([0.5, 0.25, 0.2, 0.1]).expand(2, 3, 4)
    _, _, points, scales = aligner(torch.randn(2, 3, 16), reference, levels()[2])
    assert points.shape == scales.shape == (2, 3, 2, 2)
    assert points[..., 0].min() >= 8 * 0.4 and points[..., 0].max() <= 8 * 0.6
    assert points[..., 1].min() >= 8 * 0.2 and points[..., 1].max() <= 8 * 0.3


def test_a_box_that_is_no_number_is_no_end_of_the_process():
    """The operator would ask for memory without end; that the outputs are no numbers is told by who matches them."""
    reference = torch.tensor([torch.nan, 0.5, 0.1, 0.1]).expand(2, 3, 4)
    _, _, points, _ = SemanticAligner(16, 2, smca=False)(torch.randn(2, 3, 16), reference, levels()[2])
    assert points[..., 0].isnan().all() and points[..., 1].isfinite().all()


def test_a_gaussian_is_the_square_of_scaled_distances():
    points, scales = torch.randn(2, 3, 4, 2), torch.randn(2, 3, 4, 2)
    found = gaussian(points, scales, (5, 6), offset=0.5)
    for index in [(0, 0, 0), (1, 2, 3), (1, 0, 2)]:
        for row, column in [(0, 0), (4, 2), (3, 5)]:
            dx, dy = points[index] - torch.tensor([column + 0.5, row + 0.5])
            sx, sy = scales[index]
            wanted = -((sx * dx) ** 2 + (sy * dy) ** 2) / 8
            torch.testing.assert_close(found[index[0], index[2], index[1], row * 6 + column], wanted)
