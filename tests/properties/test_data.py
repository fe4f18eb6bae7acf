"""From boxes as annotated to boxes as trained on: clipping and augmentation, for any picture."""

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dndetr.config import DataConfig
from dndetr.data.augment import fitted, fixed_view, training_view
from dndetr.data.boxes import clipped
from tests.properties import repeatable

side = st.integers(1, 60)
length = st.integers(1, 20_000)
pixel = st.floats(-1e5, 1e5) | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1)
TINY = 1e-5  # of a side: less of a box than this may or may not be left out


@given(st.tuples(pixel, pixel, pixel, pixel), length, length)
@repeatable
def test_a_clipped_box_is_what_the_image_and_the_box_share(box, width, height):
    found = clipped(box, width, height)
    for axis, size in enumerate((width, height)):
        begin, end = Fraction(box[axis]), Fraction(box[axis]) + Fraction(box[axis + 2])
        low, high = (float(min(max(edge / size, Fraction(0)), Fraction(1))) for edge in (begin, end))
        if found is None:
            continue
        assert found[axis + 2] > 0
        assert torch.tensor(found[axis + 2]).item() > 0  # in single precision too, which training has
        assert abs(found[axis] - found[axis + 2] / 2 - low) < TINY and abs(found[axis] + found[axis + 2] / 2 - high) < TINY


@given(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.001, 1), st.floats(0.001, 1), length, length)
@repeatable
def test_a_box_with_something_in_the_image_is_kept_and_clipping_it_again_changes_nothing(x, y, w, h, width, height):
    found = clipped((x * width, y * height, w * width, h * height), width, height)
    assert found is not None
    cx, cy, inner, tall = found
    again = clipped(((cx - inner / 2) * width, (cy - tall / 2) * height, inner * width, tall * height), width, height)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(found), atol=1e-6, rtol=0)


@given(length, length, st.integers(1, 2000), st.integers(1, 3000))
@repeatable
def test_a_fitted_size_keeps_the_shape_below_both_limits(height, width, size, max_size):
    fit = fitted(height, width, size, max_size)
    assert min(fit) >= 1 and min(fit) <= size and max(fit) <= max_size
    (short, long), (shorter, longer) = sorted(fit), sorted((height, width))
    exact = min(size / shorter, max_size / longer)
    assert abs(short - max(1, shorter * exact)) <= 0.5 + 1e-6
    assert long == min(short * longer // shorter, max_size)  # cut off, as DETR does


@st.composite
def scenes(draw, crop: bool):
    """A picture, boxes within it, and how it is brought to size."""
    sizes = tuple(draw(st.lists(st.integers(8, 60), min_size=1, max_size=3)))
    eval_size = draw(st.integers(8, 60))
    chances = st.sampled_from([0.0, 0.5, 1.0])
    config = DataConfig(
        sizes=sizes,
        eval_size=eval_size,
        max_size=draw(st.integers(eval_size, 100)),
        crop=crop,
        flip=draw(chances),
        vertical_flip=draw(chances),
    )
    corners = [sorted(draw(st.tuples(*[st.floats(0, 1, width=32)] * 2))) for _ in range(2 * draw(st.integers(0, 4)))]
    boxes = [
        ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        for (x0, x1), (y0, y1) in zip(corners[::2], corners[1::2], strict=True)
    ]
    picture = Image.new("RGB", (draw(side), draw(side)))
    return picture, torch.tensor(boxes, dtype=torch.float32).view(-1, 4), config, draw(st.integers(0, 2**32))


def view(scene):
    picture, boxes, config, seed = scene
    return training_view(picture, boxes, torch.arange(len(boxes)), config, torch.Generator().manual_seed(seed))


@given(scenes(crop=True) | scenes(crop=False))
@repeatable
def test_boxes_in_view_are_in_the_image_and_keep_their_labels(scene):
    picture, boxes, labels = view(scene)
    config = scene[2]
    assert picture.isfinite().all() and max(picture.shape[1:]) <= config.max_size
    assert len(labels) == len(boxes) and labels.tolist() == sorted(set(labels.tolist()))
    begin, end = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    assert (begin >= -1e-5).all() and (end <= 1 + 1e-5).all() and (begin <= end + 1e-6).all()


@given(scenes(crop=True))
@repeatable
def test_an_object_as_large_as_the_picture_fills_every_view_and_keeps_its_label(scene):
    picture, boxes, config, seed = scene
    boxes = torch.cat((boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]])))
    _, left, labels = view((picture, boxes, config, seed))
    assert labels[-1] == len(boxes) - 1
    torch.testing.assert_close(left[-1], boxes[-1], atol=1e-5, rtol=0)


@given(scenes(crop=False))
@repeatable
def test_without_a_crop_every_box_stays_where_it_is_or_is_mirrored(scene):
    _, boxes, labels = view(scene)
    _, before, config, _ = scene
    assert labels.tolist() == list(range(len(before)))
    torch.testing.assert_close(boxes[:, 2:], before[:, 2:], atol=1e-5, rtol=0)
    for axis, chance in enumerate((config.flip, config.vertical_flip)):
        kept, mirrored = (
            (boxes[:, axis] - center).abs().amax() < 1e-5 if len(boxes) else True
            for center in (before[:, axis], 1 - before[:, axis])
        )
        assert (kept and chance < 1) or (mirrored and chance > 0)


@given(scenes(crop=True))
@repeatable
def test_a_view_follows_from_its_generator(scene):
    for first, second in zip(view(scene), view(scene), strict=True):
        assert torch.equal(first, second)


@given(scenes(crop=False))
@repeatable
def test_evaluation_sees_one_size_only(scene):
    picture, _, config, _ = scene
    seen = fixed_view(picture, config)
    assert seen.shape[1:] == fitted(picture.height, picture.width, config.eval_size, config.max_size)
