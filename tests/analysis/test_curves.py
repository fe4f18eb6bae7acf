"""`dndetr analyze curves`: interpolation of curves made by hand, and the command."""

import json

import numpy as np
import pytest
from PIL import Image

from dndetr.analysis.curves import acceleration, analyze_curves, crossing, curve_of
from dndetr.console import UserError


def records(aps, seconds=10.0):
    return [{"epoch": i, "ap": ap, "seconds": seconds} for i, ap in enumerate(aps, start=1)]


@pytest.mark.parametrize(
    ("y", "level", "x"),
    [
        ([0.0, 0.4, 0.8], 0.4, 2.0),
        ([0.0, 0.4, 0.8], 0.5, 2.25),
        ([0.0, 0.4, 0.2, 0.6], 0.3, 1.75),  # the first time, whatever comes later
        ([0.2, 0.1, 0.3], 0.2, 1.0),  # there from the start
        ([0.0, 0.4, 0.4], 0.4, 2.0),
        ([0.0, 0.4], 0.5, None),
    ],
)
def test_a_level_is_crossed_where_the_line_first_reaches_it(y, level, x):
    found = crossing(range(1, len(y) + 1), y, level)
    assert found == (x if x is None else pytest.approx(x))


def test_epochs_that_were_not_evaluated_take_their_time():
    curve = curve_of("run", records([None, 0.2, None, 0.4]))
    assert (curve.epochs, curve.seconds, curve.ap) == ([2, 4], [20, 40], [0.2, 0.4])
    assert crossing(curve.epochs, curve.ap, 0.3) == pytest.approx(3)


def test_acceleration_is_what_one_run_needs_for_the_ap_of_the_other():
    fast, slow = curve_of("fast", records([0.2, 0.4, 0.8], seconds=20)), curve_of("slow", records([0.1, 0.3, 0.5, 0.4]))
    epochs = {(a.a, a.b, a.aim): a for a in acceleration([fast, slow], "epochs")}
    assert epochs["fast", "slow", "final"].mine == pytest.approx(2)
    assert epochs["fast", "slow", "final"].ratio == pytest.approx(2)  # 4 epochs / 2
    assert epochs["fast", "slow", "best"].mine == pytest.approx(2.25)
    assert epochs["fast", "slow", "best"].ratio == pytest.approx(3 / 2.25)  # the best one was epoch 3
    assert epochs["slow", "fast", "final"].mine is None
    assert epochs["slow", "fast", "final"].ratio is None
    seconds = {(a.a, a.b, a.aim): a for a in acceleration([fast, slow], "seconds")}
    assert seconds["fast", "slow", "final"].mine == pytest.approx(40)
    assert seconds["fast", "slow", "final"].ratio == pytest.approx(1)


def run(folder, *rows):
    folder.mkdir()
    (folder / "config.yaml").touch()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_command_prints_curves_and_acceleration(main, tmp_path):
    fast, slow = run(tmp_path / "fast", *records([0.2, 0.4])), run(tmp_path / "slow", *records([0.1, 0.2, 0.3]))
    done = main("analyze", "curves", "--run", fast, "--ckpt", slow)
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["3", "-", "0.300"] in lines
    assert ["fast", "slow", "final", "0.300", "1.5", "3", "2.00", "x"] in lines
    assert ["fast", "slow", "final", "0.300", "15.0", "30", "2.00", "x"] in lines
    assert ["slow", "fast", "best", "0.400", "not", "reached", "2", "-"] in lines
    assert "linear interpolation" in done.out
    assert np.asarray(Image.open(fast / "analysis" / "curves.png").convert("L")).std() > 1


def test_a_level_that_was_there_at_first_is_a_bound(main, tmp_path):
    runs = run(tmp_path / "a", *records([0.5, 0.6])), run(tmp_path / "b", *records([0.1, 0.4]))
    done = main("analyze", "curves", "--run", runs[0], "--run", runs[1])
    assert "a b final 0.400 <= 1.0 2 >= 2.00 x" in [" ".join(line.split()) for line in done.out.splitlines()]


def test_one_run_alone_has_no_acceleration(main, runs, tmp_path):
    done = main("analyze", "curves", "--run", runs[0], "--out", tmp_path)
    assert done.code == 0
    assert "Acceleration" not in done.out
    assert (tmp_path / "curves.png").is_file()


def test_runs_without_a_curve_are_refused(tmp_path):
    for name, rows, sentence in (
        ("empty", [], "no epoch is recorded"),
        ("unevaluated", records([None]), "no epoch has an AP yet"),
    ):
        with pytest.raises(UserError, match=sentence):
            analyze_curves([run(tmp_path / name, *rows)])
    broken = run(tmp_path / "broken")
    (broken / "metrics.jsonl").write_text('{"epoch": 1')
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read"):
        analyze_curves([broken])


def test_a_folder_that_cannot_be_written_is_named(runs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written: .* --out"):
        analyze_curves(runs, out=tmp_path / "file")
