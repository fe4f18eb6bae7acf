"""`dndetr analyze anchors`: distances, and arrows that point where they should."""

import numpy as np
import pytest
import torch
from PIL import Image

from dndetr.analysis.anchors import Arrows, analyze_anchors, arrows_of, in_pixels
from dndetr.console import UserError
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.structures import Output, Target
from dndetr.training.run import Run
from tests.training.tiny import write_dataset

BOXES = torch.tensor([[0.2, 0.3, 0.1, 0.1], [0.7, 0.6, 0.2, 0.4]])


def output(anchors) -> Output:
    """Query 2 predicts the first box, query 0 the second one; query 1 something else."""
    boxes = torch.stack((BOXES[1], torch.tensor([0.5, 0.1, 0.9, 0.1]), BOXES[0]))[None, None]
    return Output(torch.zeros(1, 1, 3, 1), boxes, anchors[None], QueryLayout(0, 0, 3))


@pytest.mark.parametrize("values", [4, 2])
def test_arrows_go_from_the_anchor_of_a_query_to_the_box_that_it_matches(values):
    anchors = torch.tensor([[0.6, 0.6, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0], [0.2, 0.5, 0.4, 0.1]])[:, :values]
    target = Target(torch.tensor([0, 0]), BOXES, image_id=5)
    (arrows,) = arrows_of(output(anchors), [target], Matcher(MatchConfig()))
    assert arrows.image_id == 5
    starts, ends = in_pixels(arrows, width=100, height=10)
    np.testing.assert_allclose(starts, [[60, 6], [20, 5]], rtol=1e-5)
    np.testing.assert_allclose(ends, [[70, 6], [20, 3]], rtol=1e-5)
    of_all, of_centre = [0.1 + 0.0 + 0.0 + 0.2, 0.0 + 0.2 + 0.3 + 0.0], [0.1, 0.2]
    np.testing.assert_allclose(arrows.distances, of_all if values == 4 else of_centre, rtol=1e-5)


def test_an_image_without_objects_has_no_arrows():
    empty = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    (arrows,) = arrows_of(output(torch.rand(3, 4)), [empty], Matcher(MatchConfig()))
    assert [len(array) for array in arrows[1:]] == [0, 0, 0]


def test_the_command_measures_what_training_recorded_and_draws(main, runs, tmp_path):
    done = main("analyze", "anchors", "--ckpt", runs[0], "--ckpt", runs[1], "--images", 2, "--out", tmp_path)
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    for run in runs:
        records = Run(run).records()
        best = max(records, key=lambda record: record["ap"])
        row = next(line for line in lines if line[:1] == [run.name])
        assert row[1:4] == [str(best["epoch"]), "7", f"{best['anchor_distance']:.3f}"]
        assert float(row[3]) == pytest.approx(float(row[4]) + float(row[5]), abs=2e-3)
    pictures = sorted((tmp_path / "arrows").glob("*.png"))
    assert [picture.stem for picture in pictures] == [f"{i:012d}" for i in (13, 33)]  # the second and the fourth image
    for picture in (tmp_path / "anchors.png", *pictures):
        assert np.asarray(Image.open(picture).convert("L")).std() > 1


def test_no_pictures_are_drawn_where_none_are_wanted(runs, tmp_path):
    (reach,) = analyze_anchors(runs[:1], images=0, out=tmp_path)
    assert [file.name for file in tmp_path.rglob("*.png")] == ["anchors.png"]
    assert isinstance(next(iter(reach.arrows.values())), Arrows)


def test_runs_on_different_images_are_not_compared(runs, tmp_path, monkeypatch):
    from dndetr.analysis import anchors

    other = write_dataset(tmp_path / "other", val=4)

    def elsewhere(name, run, overrides, *, trust):
        return original(name, run, [f"data.root={other}"] if name == "baseline" else overrides, trust=trust)

    original = anchors.measure
    monkeypatch.setattr(anchors, "measure", elsewhere)
    with pytest.raises(UserError, match="dn and baseline have different validation images"):
        analyze_anchors(runs, out=tmp_path / "out")


def test_a_dataset_without_objects_is_refused(main, runs, tmp_path):
    none = write_dataset(tmp_path / "none", val=1)
    done = main("analyze", "anchors", "--ckpt", runs[0], f"data.root={none}", "--out", tmp_path / "out")
    assert done.code == 2
    assert "no object to be matched" in done.err


def test_of_points_it_is_said_what_is_measured(capsys, runs, tmp_path, monkeypatch):
    from dndetr.analysis import anchors

    def points(*arguments):
        return [a._replace(anchors=a.anchors[:, :2]) for a in original(*arguments)]

    original = anchors.arrows_of
    monkeypatch.setattr(anchors, "arrows_of", points)
    analyze_anchors(runs[:1], images=1, out=tmp_path)
    assert "The queries of dn are points without a size: its distance is over the centre alone" in capsys.readouterr().out
