"""`known-objects`, `known-labels` and what `eval` and `predict` may be told, through the command line on a tiny dataset."""

import csv
import json

import pytest

from dndetr.console import UserError
from dndetr.known.objects import choose
from dndetr.resolve import from_tree, to_tree
from dndetr.settings import dump
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.commands import Telling
from dndetr.training.run import Run
from tests.training.tiny import tiny_config, write_dataset

NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of 8 images, and a preset for it."""
    folder = tmp_path_factory.mktemp("known")
    root = write_dataset(folder / "data", train=8, val=4)
    (folder / "tiny.yaml").write_text(dump(to_tree(tiny_config(root, epochs=1))))
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    """A trained run, and one that learned to use known objects of any class."""
    from dndetr.resolve import load_preset
    from dndetr.training.loop import train

    train(load_preset(folder / "tiny.yaml"), folder / "run")
    train(load_preset(folder / "tiny.yaml", ["task.name=known_objects", "noise.groups=1"]), folder / "knowing")
    return folder / "run"


def test_known_objects_are_a_study_of_three_detectors(folder, main):
    words = ("known-objects", "--split", "0.7", "--preset", folder / "tiny.yaml", "--out", folder / "objects")
    code, said, _ = main(*words, "--dry-run")
    assert code == 0 and "unknown green; known red, blue" in said and not (folder / "objects").exists()
    code, said, errors = main(*words)
    assert code == 0, errors
    rows = list(csv.DictReader((folder / "objects" / "known-objects.csv").open()))
    assert [row["detector"] for row in rows] == [
        "DAB, unknown classes alone", "DN, unknown classes alone", "DN, known objects told",
    ]  # fmt: skip
    assert [bool(row["ap_cond"]) for row in rows] == [False, False, True]
    tasks = [load_checkpoint(row["run"]).config for row in rows]
    assert [tree["task"] for tree in tasks] == [
        {"name": name, "classes": ["green"]} for name in ("detection", "detection", "known_objects")
    ]
    assert [tree["noise"] and tree["noise"]["groups"] for tree in tasks] == [None, 1, 1]
    assert "one seed" in said and "| 42.1 |" in (folder / "objects" / "known-objects.md").read_text()
    before = [load_checkpoint(row["run"]).step for row in rows]
    code, said, _ = main(*words)  # nothing is trained or measured again
    assert code == 0 and "3 of them finished" in said and "evaluation" not in said
    assert [load_checkpoint(row["run"]).step for row in rows] == before


@pytest.mark.parametrize(("split", "known"), [(0.7, 4), (0.5, 3), (0.0, 1), (1.0, 5)])
def test_classes_are_split_by_the_seed(split, known):
    names = [f"c{i}" for i in range(6)]
    assert len(choose(names, split, (), 0)) == 6 - known
    assert choose(names, split, (), 3) == choose(names, split, (), 3)
    assert len({choose(names, 0.5, (), seed) for seed in range(9)}) > 5
    assert choose(names, split, ["c4", "c1"], 0) == ("c1", "c4")
    with pytest.raises(UserError, match="at least one must be known"):
        choose(names, split, names, 0)


def test_unknown_classes_must_be_classes(folder, main):
    code, _, errors = main("known-objects", "--unknown", "green,pink", "--preset", folder / "tiny.yaml")
    assert code == 2 and errors == "--unknown pink: no class of the data, which has red, green, blue\n"


def test_known_labels_are_fine_tuned_and_measured_at_every_stage(folder, detector, main):
    out = folder / "labels"
    code, said, errors = main("known-labels", "--ckpt", detector, "--epochs", 2, "--out", out)
    assert code == 0, errors
    page = (out / "known-labels.md").read_text()
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")] == [
        "what is told", "---", "no labels", "no labels, absent classes left out", "known labels",
        "no labels, 1 epoch", "no labels, 2 epochs", "no labels, absent classes left out, 2 epochs",
        "known labels, 1 epoch", "known labels, 2 epochs",
    ]  # fmt: skip
    tree, before = load_checkpoint(out / "told").config, load_checkpoint(detector).config
    alike = load_checkpoint(out / "control").config
    assert {**tree, "task": None} == {**alike, "task": None} and alike["task"]["name"] == "detection"
    assert tree["task"]["name"] == "known_labels" and tree["train"]["lr"] == pytest.approx(before["train"]["lr"] / 10)
    assert len(Run(out / "told").records()) == 2
    code, said, _ = main("known-labels", "--ckpt", detector, "--epochs", 3, "--no-control", "--out", out)  # goes on
    assert code == 0 and len(Run(out / "told").records()) == 3
    code, _, errors = main("known-labels", "--ckpt", out / "told", "--out", folder / "again")
    assert code == 2 and "was trained for known_labels" in errors


def test_labels_from_a_file_are_told(folder, detector, main):
    ids = [image["id"] for image in json.loads((folder / "data/annotations/instances_val.json").read_text())["images"]]
    file = folder / "said.json"
    file.write_text(json.dumps({"classes": ["green", "red"], "images": {str(i): [0.9, 0.4] for i in ids}}))
    options = ("eval", "--ckpt", detector, "--labels-from", file, "--json", folder / "eval.json")
    code, said, errors = main(*options)
    assert code == 0, errors
    assert "nothing told" in said and f"with labels of {file}" in said
    assert f"with classes not among the labels of {file} left out" in said.replace("\n", " ")
    checkpoint = load_checkpoint(detector)
    asks = Telling(labels_from=file).asks(checkpoint, from_tree(checkpoint.config)).values()
    assert [getattr(ask, "told", None) for ask in asks] == [None, False, True]  # told nothing, left out, told
    content = json.loads((folder / "eval.json").read_text())
    assert content["told"] == f"labels of {file}" and content["ap_of"]["nothing told"] is not None
    for text, sentence in (
        ('{"classes": ["pink"], "images": {}}', "has classes that the detector does not know: pink"),
        ('{"classes": ["red", "red"], "images": {}}', "has several classes of one name"),
        ('{"classes": ["red"], "images": {"1": []}}', "not a file of image labels"),
        ("[]", "not a file of image labels"),
    ):
        file.write_text(text)
        code, _, errors = main(*options)
        assert code == 2 and sentence in errors, text
    code, _, errors = main(*options[:4], folder / "nothing.json")
    assert code == 2 and "cannot be read" in errors


def test_progressive_inference_needs_a_detector_that_can_use_what_it_is_told(folder, detector, main):
    code, _, errors = main("eval", "--ckpt", detector, "--progressive", 2)
    assert code == 2 and "task.name=known_objects" in errors
    options = ("--ckpt", folder / "knowing", "--progressive", 2, "--sure", 0.01)
    code, said, errors = main("eval", *options, "--json", folder / "progressive.json")
    assert code == 0, errors
    assert "2 rounds from a score of 0.01" in said and "with 2 rounds" in said and "with non-maximum suppression" in said
    picture = next((folder / "data" / "val").iterdir())
    code, _, errors = main("predict", *options, "--threshold", 0, "--out", folder / "rounds", picture)
    assert code == 0, errors
    code, _, errors = main("predict", "--ckpt", folder / "knowing", "--threshold", 0, "--out", folder / "plain", picture)
    rounds, plain = (json.loads((folder / name / "predictions.json").read_text()) for name in ("rounds", "plain"))
    assert rounds != plain
    code, _, errors = main("predict", "--ckpt", detector, "--progressive", 1, "--out", folder / "no", picture)
    assert code == 2 and "task.name=known_objects" in errors


def test_a_part_of_the_classes_can_be_evaluated(detector, main, tmp_path):
    code, _, errors = main("eval", "--ckpt", detector, "task.classes=[green]", "--json", tmp_path / "green.json")
    assert code == 0, errors
    code, _, errors = main("eval", "--ckpt", detector, "task.classes=[pink]")
    assert code == 2 and "task.classes: pink: no class of the data" in errors
