"""`dndetr analyze is`: from stored matches and from checkpoints."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dndetr.analysis.changes import analyze_instability, recomputed
from dndetr.analysis.instability import load_matches, save_matches
from dndetr.analysis.runs import checkpoints_by_epoch, open_runs
from dndetr.console import UserError
from dndetr.training.checkpoint import load_checkpoint, save_checkpoint
from dndetr.training.run import Run


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the run `dn` that may be changed."""
    return Run(shutil.copytree(runs[0], tmp_path / "dn"))


def is_blank(path) -> bool:
    return np.asarray(Image.open(path).convert("L")).std() < 1


def test_the_command_writes_a_table_a_plot_and_a_csv(main, runs, tmp_path):
    done = main("analyze", "is", "--ckpt", runs[0], "--ckpt", runs[1], "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["epoch", "dn", "baseline"] in lines
    recorded = [[r["instability"] for r in Run(run).records()] for run in runs]
    assert ["2", f"{recorded[0][1]:.3f}", f"{recorded[1][1]:.3f}"] in lines
    assert ["3", f"{recorded[0][2]:.3f}", "-"] in lines
    assert ["largest", "possible", "2.333", "2.333"] in lines  # of 0, 1, 2, 3, 0, 1 objects
    assert not is_blank(tmp_path / "out" / "instability.png")
    with open(tmp_path / "out" / "instability.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["epoch"], row["previous_epoch"]) for row in rows] == [
        ("dn", "2", "1"), ("dn", "3", "2"), ("baseline", "2", "1"),
    ]  # fmt: skip
    assert [float(row["instability"]) for row in rows] == [*recorded[0][1:], *recorded[1][1:]]


def test_the_old_name_of_the_command_works_and_writes_beside_the_run(main, copy):
    assert main("analyze-instability", "--ckpt", copy.path).code == 0
    assert (copy.path / "analysis" / "instability.png").is_file()


def test_recomputing_gives_what_training_stored(runs, copy, tmp_path):
    (stored,) = analyze_instability(runs[:1], layers=True, out=tmp_path / "a")
    for epoch, matches in recomputed(copy, (), trust=False).items():
        np.testing.assert_equal(matches._asdict(), load_matches(copy.matches(epoch))._asdict())
    shutil.rmtree(copy.path / "matches")
    (made,) = analyze_instability([copy.path], layers=True, recompute=True, out=tmp_path / "b")
    assert made.previous == stored.previous == {2: 1, 3: 2}
    np.testing.assert_equal(made.values, stored.values)
    assert any(values.any() for values in stored.values.values())


def test_identical_checkpoints_have_no_instability(copy, tmp_path):
    for epoch in (2, 3):
        shutil.copy(copy.kept(1), copy.kept(epoch))
    (series,) = analyze_instability([copy.path], recompute=True, out=tmp_path)
    assert {epoch: values.tolist() for epoch, values in series.values.items()} == {2: [0], 3: [0]}


def test_without_kept_checkpoints_the_ordinary_ones_are_taken_by_the_epoch_that_they_end(copy):
    for file in copy.last.parent.glob("epoch_*.pt"):
        file.unlink()
    last = load_checkpoint(copy.last)
    assert load_checkpoint(copy.previous).epoch == 2  # written before the last evaluation, with the weights of epoch 3
    save_checkpoint(copy.best, replace(last, epoch=1, step=last.steps_per_epoch))
    assert checkpoints_by_epoch(copy).keys() == {1, 3}
    save_checkpoint(copy.last, replace(last, epoch=2, step=3 * last.steps_per_epoch - 1))
    assert checkpoints_by_epoch(copy) == {1: copy.best, 3: copy.previous}
    save_checkpoint(copy.previous, replace(last, epoch=0, step=1))
    assert checkpoints_by_epoch(copy) == {1: copy.best}


def test_a_run_with_nothing_to_compare_is_told_the_way_out(runs, copy):
    shutil.rmtree(copy.path / "matches")
    with pytest.raises(UserError, match=r"dn: has matches of no epoch .* --recompute makes them"):
        analyze_instability([copy.path])
    with pytest.raises(UserError, match=r"at the end of epoch \d only.* train.keep_every=1"):
        for file in (*copy.last.parent.glob("epoch_*.pt"), copy.best):
            file.unlink(missing_ok=True)
        analyze_instability([copy.path], recompute=True)
    with pytest.raises(UserError, match="settings matter with --recompute only"):
        analyze_instability(runs[:1], overrides=["data.root=x"])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m._replace(image_id=m.image_id + 1), "the images"),
        (lambda m: m._replace(matched=m.matched[:, :-1]), "the number of queries"),
        (lambda m: m._replace(matched=np.full_like(m.matched, -1)), "the objects of the images"),
    ],
)
def test_epochs_of_other_images_are_refused(copy, change, what):
    save_matches(copy.matches(3), change(load_matches(copy.matches(3))))
    with pytest.raises(UserError, match=f"{copy.path}: {what} differ between epochs 2 and 3, so they are not compared"):
        analyze_instability([copy.path])
    assert not (copy.path / "analysis").exists()


def test_checkpoints_of_other_annotations_are_refused(copy, monkeypatch):
    from dndetr.analysis import changes

    def other(file, **kwargs):
        checkpoint = original(file, **kwargs)
        return replace(checkpoint, data={"val": "?"}) if file == copy.kept(2) else checkpoint

    original = changes.load_checkpoint
    monkeypatch.setattr(changes, "load_checkpoint", other)
    with pytest.raises(UserError, match="epochs 1 and 2 were evaluated on different validation annotations"):
        analyze_instability([copy.path], recompute=True)


def test_epochs_that_are_missing_are_named(main, copy):
    copy.matches(2).unlink()
    done = main("analyze", "is", "--ckpt", copy.path)
    assert "dn has no matches of some epochs: these are changes between the epochs that there are, 1 to 3." in done.out


def test_layers_that_were_not_kept_are_named(main, copy):
    assert main("analyze", "is", "--ckpt", copy.path, "--layers").out.count("  layer ") == 2
    for epoch in (1, 3):
        save_matches(copy.matches(epoch), load_matches(copy.matches(epoch))._replace(layers=None))
    done = main("analyze", "is", "--ckpt", copy.path, "--layers")
    assert done.code == 2
    assert "has the matches of the last decoder layer only in epoch 1, 3; leave out --layers" in done.err


def test_the_mean_of_the_early_epochs_is_given_where_all_are_there(main, copy):
    before = main("analyze", "is", "--ckpt", copy.path).out
    for epoch in range(4, 7):
        shutil.copy(copy.matches(3), copy.matches(epoch))
    values = [r["instability"] for r in copy.records()[1:]]
    after = main("analyze", "is", "--ckpt", copy.path).out
    assert "mean, " not in before
    assert f"{sum(values) / 5:.3f}" in next(line for line in after.splitlines() if line.startswith("mean, 2 to 6"))


def test_names_are_the_ends_of_paths_that_tell_runs_apart(tmp_path):
    for name in ("a/run", "b/run", "c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    assert list(open_runs([tmp_path / "a/run", tmp_path / "c"])) == ["run", "c"]
    assert list(open_runs([tmp_path / "a/run", tmp_path / "b/run"])) == ["a/run", "b/run"]
    with pytest.raises(UserError, match="given twice"):
        open_runs([tmp_path / "c", tmp_path / "a" / ".." / "c"])
    with pytest.raises(UserError, match="a: not a run folder"):
        open_runs([tmp_path / "a"])
