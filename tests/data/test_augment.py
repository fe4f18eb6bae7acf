from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dndetr.config import DataConfig
from dndetr.data.augment import MEAN, SLIVER, STD, cropped, fitted, fixed_view, image_generator, pixels, training_view

PLAIN = DataConfig(sizes=(96,), eval_size=96, max_size=200, crop=False, flip=0.0)
WIDTH, HEIGHT = 120, 96


def view(config: DataConfig, seed: int = 0, picture=None, boxes=None):
    """A black picture with one white box, as the detector sees it in training."""
    if picture is None:
        picture = Image.new("RGB", (WIDTH, HEIGHT))
        picture.paste("white", (20, 30, 60, 50))
        boxes = torch.tensor([[40 / WIDTH, 40 / HEIGHT, 40 / WIDTH, 20 / HEIGHT]])
    return training_view(picture, boxes, torch.arange(len(boxes)) + 5, config, image_generator(seed, 1, 1, "view"))


def bright(seen: torch.Tensor) -> torch.Tensor:
    """The box of what is bright, cxcywh in [0, 1]."""
    light = seen[0] > (0.5 - MEAN[0]) / STD[0]
    rows, columns = light.any(1).nonzero()[:, 0], light.any(0).nonzero()[:, 0]
    height, width = light.shape
    x0, x1, y0, y1 = columns[0] / width, (columns[-1] + 1) / width, rows[0] / height, (rows[-1] + 1) / height
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0))


def test_nothing_to_do_changes_nothing():
    seen, boxes, labels = view(PLAIN)
    assert seen.shape == (3, HEIGHT, WIDTH) and seen.dtype == torch.float32 and labels.tolist() == [5]
    torch.testing.assert_close(boxes[0], bright(seen))
    torch.testing.assert_close(boxes, torch.tensor([[40 / WIDTH, 40 / HEIGHT, 40 / WIDTH, 20 / HEIGHT]]))
    assert type(boxes) is torch.Tensor


@pytest.mark.parametrize("flip, vertical, center", [(1, 0, (80, 40)), (0, 1, (40, 56)), (1, 1, (80, 56))])
def test_flips_move_boxes_with_pixels(flip, vertical, center):
    seen, boxes, _ = view(replace(PLAIN, flip=flip, vertical_flip=vertical))
    torch.testing.assert_close(boxes[0], bright(seen))
    torch.testing.assert_close(boxes[0, :2] * torch.tensor([WIDTH, HEIGHT]), torch.tensor(center).float())


def test_every_choice_keeps_boxes_on_their_pixels():
    """Flips, sizes and crops of 60 seeds: what is left of a white box near the border is where the target says."""
    config = DataConfig(sizes=(96, 128, 160), eval_size=96, max_size=170, vertical_flip=0.5)
    picture = Image.new("RGB", (WIDTH, HEIGHT))
    picture.paste("white", (4, 3, 24, 13))
    box = torch.tensor([[14 / WIDTH, 8 / HEIGHT, 20 / WIDTH, 10 / HEIGHT]])
    shapes, lost = set(), 0
    for seed in range(60):
        seen, boxes, labels = view(config, seed, picture, box)
        shapes.add(tuple(seen.shape[1:]))
        assert max(seen.shape[1:]) <= 170 and len(boxes) == len(labels)
        lost += not len(boxes)
        if len(boxes):
            torch.testing.assert_close(boxes[0], bright(seen), atol=2.5 / 96, rtol=0)
            assert (boxes[0, :2] - boxes[0, 2:] / 2 > -1e-5).all() and (boxes[0, :2] + boxes[0, 2:] / 2 < 1 + 1e-5).all()
    assert len(shapes) > 10 and 0 < lost < 30


def test_crops_keep_the_labels_of_their_boxes():
    """Nine boxes on a grid; those that a crop leaves come with their own labels."""
    centers = torch.cartesian_prod(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.1, 0.5, 0.9]))
    boxes = torch.cat((centers, torch.full((9, 2), 0.1)), 1)
    levels = np.zeros((160, 160, 3), dtype=np.uint8)
    for label, (x, y) in enumerate((centers * 160).long().tolist()):
        levels[y - 8 : y + 8, x - 8 : x + 8] = 20 * (label + 4)
    counts = set()
    for seed in range(30):
        config = replace(PLAIN, sizes=(160,), crop=True, flip=0.5)
        seen, left, labels = view(config, seed, Image.fromarray(levels), boxes)
        counts.add(len(left))
        height, width = seen.shape[1:]
        for (x, y, w, h), label in zip(left.tolist(), labels.tolist(), strict=True):
            if w > 0.08 and h > 0.08:
                value = seen[0, int(y * height), int(x * width)] * STD[0] + MEAN[0]
                assert round(float(value) * 255) == 20 * (label - 5 + 4)
    assert len(counts) > 2


def test_no_object_that_a_crop_cuts_is_lost(monkeypatch):
    """Of 40 crops of 200 boxes, all that keep more than a sliver."""
    windows, crop, cut = [], F.crop, 0
    monkeypatch.setattr(F, "crop", lambda x, *window: windows.append((x, window)) or crop(x, *window))
    picture, rng = Image.new("RGB", (480, 400)), torch.Generator().manual_seed(0)
    for seed in range(40):
        centers, sides = 0.1 + 0.8 * torch.rand(200, 2, generator=rng), 0.02 + 0.3 * torch.rand(200, 2, generator=rng)
        pixel = torch.cat((centers, sides), 1) * torch.tensor([480, 400, 480, 400])
        boxes = tv_tensors.BoundingBoxes(pixel, format="CXCYWH", canvas_size=(400, 480))
        windows.clear()
        _, _, labels = cropped((picture, boxes, torch.arange(200)), 1.0, image_generator(seed, 1, 1, "view"))
        whole, (top, left, height, width) = windows[0]
        center, side = whole.as_subclass(torch.Tensor).double().split(2, dim=1)
        origin, limit = torch.tensor([left, top]), torch.tensor([width, height])
        low, high = center - side / 2 - origin, center + side / 2 - origin
        stays = (high.minimum(limit) - low.clamp(min=0) > SLIVER + 0.01).all(1)
        cut += int((stays & ((low < 0) | (high > limit)).any(1)).sum())
        assert set(stays.nonzero()[:, 0].tolist()) <= set(labels.tolist())
    assert cut > 500


def test_images_without_objects():
    empty = torch.zeros(0, 4)
    for seed in range(6):
        seen, boxes, labels = view(replace(PLAIN, crop=True, flip=0.5), seed, Image.new("RGB", (30, 50)), empty)
        assert min(seen.shape[1:]) > 0 and boxes.shape == (0, 4) and labels.shape == (0,)


def test_extreme_shapes():
    for size in ((1, 1), (1, 300), (300, 1)):
        for seed in range(6):
            config = replace(PLAIN, crop=True, max_size=100)
            seen, boxes, _ = view(config, seed, Image.new("RGB", size), torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
            assert max(seen.shape[1:]) <= 100 and torch.isfinite(boxes).all()


def test_normalised_as_imagenet():
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = (levels / 255 - np.array(MEAN)) / np.array(STD)
    torch.testing.assert_close(pixels(Image.fromarray(levels)), torch.tensor(expected.transpose(2, 0, 1)).float())


def test_sizes():
    assert fitted(480, 640, 800, 1333) == (800, 1066)
    assert fitted(640, 427, 800, 1333) == (1199, 800)
    assert fitted(375, 1000, 800, 1333) == (500, 1333)  # 499.9 are rounded
    assert fitted(1200, 480, 800, 1333) == (1332, 533)  # 533.2 are rounded, and 1332.5 of them cut off
    assert fitted(104, 1000, 800, 1333) == (139, 1333)  # where DETR itself has 1336
    assert fitted(1, 5000, 800, 1333) == (1, 1333)
    assert fitted(96, 96, 96, 96) == (96, 96)
    assert fixed_view(Image.new("RGB", (60, 40)), replace(PLAIN, eval_size=80, max_size=100)).shape == (3, 67, 100)


def test_sizes_are_those_of_detr_in_transformers():
    """Of 20,000 random pictures. Where the maximum acts, transformers takes the longer side from the shorter one before it is
    rounded, DETR from the rounded one.
    """
    resize = pytest.importorskip("transformers.image_transforms").get_size_with_aspect_ratio
    rng = np.random.default_rng(0)
    acted = 0
    for height, width in rng.integers(50, 3000, (20_000, 2)).tolist():
        size = int(rng.choice(DataConfig.sizes))
        ours, theirs = fitted(height, width, size, 1333), resize((height, width), size, 1333)
        if min(ours) == size:
            assert ours == theirs, (height, width, size)
            continue
        acted += 1
        (short, long), ratio = sorted(ours), max(height, width) / min(height, width)
        assert short == min(theirs) and (ours[0] > ours[1]) == (theirs[0] > theirs[1])
        assert max(theirs) - ratio / 2 - 1 <= long <= 1333, (height, width, size)
    assert 2000 < acted < 18_000


def test_streams_are_apart_and_repeat():
    def draw(*key) -> float:
        return torch.rand((), generator=image_generator(*key), dtype=torch.float64).item()

    keys = [(s, e, i, p) for s in range(3) for e in range(3) for i in range(20) for p in ("view", "noise")]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(1, 2, 3, "view") == draw(1, 2, 3, "view")
    assert draw(0, 1, 2**62, "view") != draw(0, 1, 2**62 + 1, "view")


def test_global_randomness_is_left_alone():
    before = torch.random.get_rng_state()
    view(DataConfig(sizes=(96, 128)), 3)
    assert torch.equal(before, torch.random.get_rng_state())
