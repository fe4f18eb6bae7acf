"""Drawn detections, sheets and curves, by their pixels."""

import gc
import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dndetr import plots
from dndetr.data.coco import Categories, load_split
from dndetr.draw import Mark, color_of, draw_marks, side_by_side
from dndetr.plots import plot_run
from dndetr.training.evaluate import ground_truth
from dndetr.training.pictures import draw_samples, marks
from tests.data.coco_files import at
from tests.training.tiny import write_dataset

BLACK = (0, 0, 0)


def picture(width: int, height: int, color=BLACK) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def where(image: Image.Image, color) -> tuple[int, int, int, int] | None:
    """The smallest rectangle (x1, y1, x2, y2), ends included, around all pixels of a colour."""
    rows, columns = (np.asarray(image) == color).all(-1).nonzero()
    return (int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())) if len(rows) else None


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((40, 50), (400, 500)), ((200, 100), (800, 400)), ((401, 900), (401, 900)), ((399, 399), (798, 798))],
)
def test_tiny_images_are_enlarged_by_whole_numbers(size, drawn):
    assert draw_marks(picture(*size), []).size == drawn


def test_the_image_itself_is_not_drawn_on():
    image = picture(40, 40)
    draw_marks(image, [Mark((5, 5, 30, 30), 0, "cat")])
    assert image.size == (40, 40) and where(image, color_of(0)) is None


def test_grey_and_transparent_images_become_rgb():
    for mode in ("L", "RGBA", "P"):
        assert draw_marks(Image.new(mode, (500, 400)), []).mode == "RGB"


def test_a_box_lies_on_its_pixels_in_the_colour_of_its_class():
    drawn = np.asarray(draw_marks(picture(40, 50), [Mark((10, 20, 30, 45), 2, "")]))
    is_color = (drawn == color_of(2)).all(-1)
    assert is_color[200:451, 100].all() and is_color[200:451, 300].all()  # ten times as large
    assert is_color[200, 100:301].all() and is_color[450, 100:301].all()
    assert not is_color[210:440, 110:290].any()
    assert not is_color[:, :100].any() and not is_color[:, 301:].any() and not is_color[451:].any()


def test_a_box_with_its_corners_swapped_or_of_one_point_is_drawn():
    swapped = draw_marks(picture(500, 500), [Mark((300, 400, 100, 200), 0, "")])
    assert np.asarray(swapped)[400, 100:301].any(-1).all()
    point = draw_marks(picture(500, 500), [Mark((250, 250, 250, 250), 0, "")])
    assert tuple(point.getpixel((250, 250))) == color_of(0)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 500, 500), (-60, -60, 40, 40), (480, 480, 500, 500), (490, -5, 620, 90), (-50, 499, 10, 700), (0, 250, 9, 300)],
)
def test_a_label_is_readable_wherever_its_box_is(box):
    """As many pixels of the text and of its ground as in the middle of the picture."""

    def label(box) -> tuple[int, int]:
        pixels = np.asarray(draw_marks(picture(500, 500), [Mark(box, 0, "person 0.87")]))
        bare = np.asarray(draw_marks(picture(500, 500), [Mark(box, 0, "")]))
        rows, columns = (pixels != bare).any(-1).nonzero()
        return int(np.ptp(rows)), int(np.ptp(columns))

    height, width = label((200, 200, 450, 450))
    found_height, found_width = label(box)
    assert found_width >= width - 12 and found_height >= height - 8  # the label of the empty text and the box hide a bit


def test_a_label_stands_above_its_box():
    drawn = draw_marks(picture(500, 500), [Mark((100, 200, 400, 400), 0, "person")])
    x1, y1, x2, y2 = where(drawn, color_of(0))
    assert (x1, x2, y2) == (100, 400, 400) and 170 < y1 < 185


def test_the_last_mark_is_on_top():
    box = (100, 100, 300, 300)
    drawn = draw_marks(picture(500, 500), [Mark(box, 0, ""), Mark(box, 1, "")])
    assert drawn.getpixel((100, 200)) == color_of(1)


def test_text_is_white_on_dark_and_black_on_light_colours():
    labels = {label: np.dot(color_of(label), (0.299, 0.587, 0.114)) for label in range(80)}
    darkest, lightest = min(labels, key=labels.get), max(labels, key=labels.get)
    for label, expected in ((darkest, (255, 255, 255)), (lightest, BLACK)):
        drawn = draw_marks(picture(500, 500, (90, 90, 90)), [Mark((100, 200, 400, 400), label, "MMMM")])
        assert where(drawn, expected) is not None


def test_colours_of_neighbouring_classes_differ():
    for a, b in itertools.pairwise(range(80)):
        assert sum(abs(x - y) for x, y in zip(color_of(a), color_of(b), strict=True)) > 150
    for a, b in itertools.combinations(range(10), 2):
        assert sum(abs(x - y) for x, y in zip(color_of(a), color_of(b), strict=True)) > 50


def test_pictures_side_by_side():
    red, blue = (255, 0, 0), (0, 0, 255)
    sheet = side_by_side([("truth", picture(120, 60, red)), ("found", picture(100, 60, blue))])
    assert sheet.size == (228, 84)
    assert where(sheet, red) == (0, 24, 119, 83) and where(sheet, blue) == (128, 24, 227, 83)
    headings = np.asarray(sheet)[:24].min(-1) < 128
    assert headings[:, :120].any() and headings[:, 128:].any()
    assert not headings[[0, -1]].any()  # whole letters


CATEGORIES = Categories((2, 5, 7), ("red", "green", "blue"))


def test_marks_have_names_and_scores_and_the_best_is_last():
    found = [
        {"category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.876},
        {"category_id": 2, "bbox": [5, 5, 1, 1], "score": 0.3},
    ]
    assert marks(found, CATEGORIES) == [Mark((5, 5, 6, 6), 0, "red 0.30"), Mark((1, 2, 4, 6), 2, "blue 0.88")]
    assert marks([{"category_id": 5, "bbox": [0, 0, 2, 2]}], CATEGORIES) == [Mark((0, 0, 2, 2), 1, "green")]
    assert marks([], CATEGORIES) == []


def folder_of_samples(tmp_path, images: int, detections=()) -> list:
    split = load_split(at(write_dataset(tmp_path / "data", train=2, val=images)), "val")
    (tmp_path / "out").mkdir()
    draw_samples(split, ground_truth(split), detections, tmp_path / "out")
    return sorted((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("images", "sheets"), [(1, 1), (3, 3), (8, 8), (9, 8), (17, 8)])
def test_a_sheet_an_image_of_at_most_eight(tmp_path, images, sheets):
    files = folder_of_samples(tmp_path, images)
    step = max(1, images // 8)
    assert [file.name for file in files] == [f"{10 * step * i + 3:012d}.jpg" for i in range(sheets)]
    assert Image.open(files[0]).size == (2 * 40 * 13 + 8, 24 + 32 * 13)


def test_truth_is_left_and_sure_detections_are_right(tmp_path):
    """Image 3 has a crowd and no object."""
    found = [
        {"image_id": 3, "category_id": 2, "bbox": [20, 15, 10, 10], "score": 0.9},
        {"image_id": 3, "category_id": 5, "bbox": [2, 15, 10, 10], "score": 0.29},
        {"image_id": 999, "category_id": 7, "bbox": [5, 15, 10, 10], "score": 0.9},
    ]
    first, second, *_ = folder_of_samples(tmp_path, 6, found)
    sheet = np.asarray(Image.open(first)).astype(int)[24:]
    bright = (sheet.max(-1) > 180) & (np.ptp(sheet, -1) > 120)
    left, right = bright[:, :520], bright[:, 528:]
    assert not left.any()
    columns = right.any(0).nonzero()[0]
    assert abs(columns.min() - 20 * 13) <= 2 and abs(columns.max() - 30 * 13) <= 2
    assert np.ptp(np.asarray(Image.open(second)).astype(int)[24:, :520], -1).max() > 120  # one object


def record(epoch: int, **numbers):
    empty = dict.fromkeys(("dn_loss", "ap", "ap50", "ap75", "instability", "anchor_distance"))
    return {"epoch": epoch, "loss": 5.0 / epoch, **empty, **numbers}


MEASURED = dict(dn_loss=1.0, ap=0.2, ap50=0.4, ap75=0.1, instability=2.0, anchor_distance=0.3)
PLOTS = ["anchor_distance.png", "ap.png", "instability.png", "losses.png"]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(1)],
        [record(1, **MEASURED)],
        [record(1, **MEASURED | {"ap": 0.0})],
        [record(1), record(2, **MEASURED), record(3), record(4, **MEASURED)],
    ],
    ids=["no epoch", "nothing measured", "one epoch", "an AP of 0", "gaps"],
)
def test_four_plots_whatever_was_measured(tmp_path, records):
    plot_run(records, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == PLOTS
    for file in tmp_path.iterdir():
        assert Image.open(file).size == (768, 480)


def curves(monkeypatch, tmp_path, records) -> dict:
    """Legend -> points of every curve that is drawn, and the limits of each axis of y."""
    seen = {}

    def look(figure, path):
        (axes,) = figure.axes
        lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
        seen[path.stem] = (lines, axes.get_ylim())

    monkeypatch.setattr(plots, "save_figure", look)
    plot_run(records, tmp_path)
    return seen


def test_curves_hold_what_was_measured(monkeypatch, tmp_path):
    seen = curves(monkeypatch, tmp_path, [record(1), record(2, **MEASURED), record(4, **MEASURED)])
    lines = {name: found for name, (found, _) in seen.items()}
    assert lines["losses"] == {"matching": [(1, 5.0), (2, 1.5), (4, 0.25)], "denoising": [(2, 1.0), (4, 1.0)]}
    assert lines["ap"] == {"AP": [(2, 0.2), (4, 0.2)], "AP50": [(2, 0.4), (4, 0.4)], "AP75": [(2, 0.1), (4, 0.1)]}
    assert lines["instability"] == {"IS": [(2, 2.0), (4, 2.0)]}
    assert lines["anchor_distance"] == {"last decoder layer": [(2, 0.3), (4, 0.3)]}
    for found, (low, high) in seen.values():
        assert low == 0 and high > max(y for points in found.values() for _, y in points)


def test_nothing_measured_draws_no_curve(monkeypatch, tmp_path):
    seen = curves(monkeypatch, tmp_path, [record(1)])
    assert {name for name, (lines, _) in seen.items() if lines} == {"losses"}
    assert list(seen["losses"][0]) == ["matching"]


def test_plots_leave_no_figure_behind(tmp_path):
    gc.collect()
    before = sum(type(each) is Figure for each in gc.get_objects())
    plot_run([record(1, **MEASURED)], tmp_path)
    assert sum(type(each) is Figure for each in gc.get_objects()) == before
