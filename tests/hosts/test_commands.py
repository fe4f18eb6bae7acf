"""Every command with every host, at tiny size: trained, stopped and resumed, evaluated, told things, looked into."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import dndetr.training.epochs as epochs
from dndetr.models.hosts import HOSTS
from dndetr.resolve import load_preset, to_tree
from dndetr.settings import dump
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.loop import train
from tests.hosts.test_contract import FORMS, GROUPED
from tests.training.test_loop import records
from tests.training.tiny import tiny_config, write_dataset

FIRST = {config.name: config for config in reversed(FORMS.values())}  # the first form of each host, and all with groups
CHOSEN = {**FIRST, "group dab": FORMS[GROUPED[1]]}
TOLD = [name for name, config in CHOSEN.items() if config.untold is None]
PLACELESS = ["detr"]  # queries without anchors


def test_every_host_is_here():
    assert set(FIRST) == set(HOSTS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), train=6, val=4)


def preset(name, root, folder, **settings):
    """A file of settings for a host: with dropout, so that what is drawn has to go on as well."""
    settings |= {} if name in TOLD else {"noise": None}
    config = replace(tiny_config(root), host=replace(CHOSEN[name], dropout=0.1, decoder_layers=2), **settings)
    file = folder / "tiny.yaml"
    file.write_text(dump(to_tree(config)))
    return file


@pytest.fixture(scope="module", params=CHOSEN)
def run(request, root, tmp_path_factory):
    """The name of a host and a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    return request.param, train(load_preset(preset(request.param, root, folder)), folder / "whole")


def test_resuming_gives_the_same_bits(run, monkeypatch, tmp_path):
    _, whole = run

    def killed(path, checkpoint, previous=None):
        original(path, checkpoint, previous)
        if checkpoint.epoch == 1:
            raise KeyboardInterrupt

    original = epochs.save_checkpoint
    monkeypatch.setattr(epochs, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train(load_preset(whole.parent / "tiny.yaml"), tmp_path / "run")
    monkeypatch.setattr(epochs, "save_checkpoint", original)
    train(load_preset(whole.parent / "tiny.yaml"), None, resume=tmp_path / "run")
    assert records(tmp_path / "run") == records(whole)
    ours, theirs = (load_checkpoint(folder, prefer="last.pt") for folder in (tmp_path / "run", whole))
    torch.testing.assert_close(ours.model, theirs.model, rtol=0, atol=0)


def test_it_is_evaluated_and_predicts(run, root, tmp_path, main):
    _, folder = run
    code, _, errors = main("eval", "--ckpt", folder, "--json", tmp_path / "numbers.json")
    assert code == 0, errors
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [numbers[key] for key in ("ap", "anchor_distance")] in [[r["ap"], r["anchor_distance"]] for r in records(folder)]
    code, said, errors = main(
        "predict", "--ckpt", folder, root / "val" / "1.png", "--out", tmp_path / "seen", "--threshold", "0"
    )
    assert code == 0 and "1 image, " in said, errors
    (found,) = json.loads((tmp_path / "seen" / "predictions.json").read_text())
    assert found["detections"]


def test_it_is_analyzed(run, tmp_path, main):
    name, folder = run
    code, said, errors = main("analyze", "is", "--ckpt", folder, "--out", tmp_path)
    assert code == 0, errors
    assert ("groups of matching queries: this is the matching of the first" in said) is (
        CHOSEN[name].__dict__.get("groups", 1) > 1
    )
    assert main("analyze", "curves", "--run", folder, "--out", tmp_path).code == 0
    code, _, errors = main("analyze", "anchors", "--ckpt", folder, "--out", tmp_path)
    if name in PLACELESS:
        sentence = f"queries of host {name} are embeddings and start at no place: they have no anchors\n"
        assert code == 2 and errors == f"{folder / 'checkpoints' / 'best.pt'}: {sentence}"
        assert {record["anchor_distance"] for record in records(folder)} == {None}
    else:
        assert code == 0 and (tmp_path / "anchors.png").stat().st_size > 0, errors
        assert None not in {record["anchor_distance"] for record in records(folder)}


def test_it_costs_something(run, main):
    _, folder = run
    code, said, errors = main("analyze", "cost", "--preset", folder.parent / "tiny.yaml", "--steps", 0, "--size", 64, 64)
    assert code == 0 and "tiny" in said, errors


def test_it_is_ablated(run, tmp_path, main):
    _, folder = run
    rows = tmp_path / "rows.yaml"
    rows.write_text(f"preset: {folder.parent / 'tiny.yaml'}\nrows: [{{name: one}}, {{name: other, set: [train.lr=1e-4]}}]\n")
    code, said, errors = main("ablate", rows, "--dry-run", "--out", tmp_path / "out")
    assert code == 0 and "other" in said, errors


def test_it_learns_what_to_do_with_known_objects(run, tmp_path, main):
    """Or says in one sentence why it cannot. `known-objects` trains as here, three times."""
    name, folder = run
    words = ["train", "--preset", folder.parent / "tiny.yaml", "--out", tmp_path / "knowing", "train.epochs=1"]
    code, _, errors = main(*words, "task.name=known_objects", "noise.groups=1")
    if name in TOLD:
        assert code == 0, errors
        code, said, errors = main("eval", "--ckpt", tmp_path / "knowing", "--progressive", 2, "--sure", 0)
        assert code == 0 and "AP " in said, errors
        return
    untold = CHOSEN[name].untold
    assert code == 2 and f"noise must be null with {untold}, whose queries are no boxes\n" in errors
    code, _, errors = main(*words, "task.name=known_objects")
    assert code == 2 and errors.endswith(f"must be detection with {untold}, whose queries can be told nothing\n")


def test_it_learns_from_known_labels(run, tmp_path, main):
    """Or says in one sentence why it cannot. `known-labels` trains as here, twice."""
    name, folder = run
    words = ["train", "--preset", folder.parent / "tiny.yaml", "--init-from", folder, "--out", tmp_path / "told"]
    code, _, errors = main(*words, "task.name=known_labels", "train.epochs=1")
    if name in TOLD:
        assert code == 0, errors
        assert main("eval", "--ckpt", tmp_path / "told").code == 0
    else:
        assert code == 2 and errors.endswith("whose queries can be told nothing\n")
        code, _, errors = main("known-labels", "--ckpt", folder, "--epochs", 1, "--out", tmp_path / "labels")
        assert code == 2 and errors.endswith("whose queries can be told nothing\n")
