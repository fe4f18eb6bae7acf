"""The commands: a detector of embedded classes is trained, evaluated and resumed, and images get their labels."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dndetr.config import TaskConfig
from dndetr.info import info
from dndetr.labels import text
from dndetr.labels.embeddings import write_vectors
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.hosts.dab_detr import DabDetrConfig
from dndetr.models.labels import LabelsConfig
from dndetr.tasks import Detection
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.incidents import keeper, replay
from dndetr.training.learner import Incident
from dndetr.training.loop import train
from dndetr.training.prepare import build_model, load_data
from dndetr.training.run import Run
from tests.training.tiny import HOST, batch, resolved, tiny_config, tiny_model, with_train, write_dataset

NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A dataset, vectors, and a run of one epoch whose file of vectors is gone."""
    folder = tmp_path_factory.mktemp("labels")
    write_dataset(folder / "data")
    vectors = {name: torch.randn(6, generator=torch.Generator().manual_seed(i)) for i, name in enumerate((*NAMES, "pink"))}
    write_vectors(folder / "vectors.safetensors", vectors, {})
    shutil.copy(folder / "vectors.safetensors", folder / "gone.safetensors")
    config = replace(tiny_config(folder / "data", epochs=1), labels=LabelsConfig(str(folder / "gone.safetensors")))
    train(resolved(config), folder / "run")
    (folder / "gone.safetensors").unlink()
    return SimpleNamespace(config=config, **{path.stem: path for path in folder.iterdir()})


@pytest.fixture
def main(main, monkeypatch, tmp_path):
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return main


def test_a_checkpoint_needs_no_file_to_be_evaluated(work, main, tmp_path):
    done = main("eval", "--ckpt", work.run, "--json", "numbers.json")
    assert (done.code, done.err) == (0, "")
    record = json.loads((work.run / "metrics.jsonl").read_text())
    assert json.loads((tmp_path / "numbers.json").read_text())["ap50"] == pytest.approx(record["ap50"], abs=1e-6)


def test_nor_to_be_resumed(work, tmp_path):
    shutil.copytree(work.run, tmp_path / "run")
    before = load_checkpoint(work.run).model
    train(resolved(with_train(work.config, epochs=2)), None, resume=tmp_path / "run")
    after = load_checkpoint(tmp_path / "run", prefer="last.pt").model
    assert torch.equal(before["label.table.embeddings"], after["label.table.embeddings"])
    assert not torch.equal(before["label.table.projection.weight"], after["label.table.projection.weight"])


def test_nor_to_compute_a_kept_batch_again(work):
    data, checkpoint = load_data(work.config), load_checkpoint(work.run)
    model = build_model(work.config, data.categories, torch.device("cpu"), checkpoint)
    losses = {"loss": torch.tensor(math.nan)}
    incident = Incident(1, "a test", losses, next(iter(data.batches)), [1.0, 1.0], model)
    keeper(work.config, data, Run(work.run))(incident)
    assert "everything is finite here" in replay(work.run / "nonfinite" / "step_000001_process_0.pt")[-1]


def test_a_new_training_does_need_it(work, main, tmp_path):
    config = json.dumps(str(work.run / "config.yaml"))[1:-1]
    done = main("train", "--preset", config, "--out", "new")
    assert done.code == 2 and "gone.safetensors: cannot be read as a .safetensors file" in done.err
    assert not (tmp_path / "new").exists()


def test_vectors_let_a_run_be_evaluated_on_classes_that_it_never_saw(work, main, tmp_path):
    shutil.copytree(work.data, tmp_path / "other")
    file = tmp_path / "other" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 1, "name": "pink"}, *content["categories"]]
    content["annotations"].append(content["annotations"][0] | {"id": 5000, "category_id": 1, "iscrowd": 1})
    file.write_text(json.dumps(content))
    refused = main("eval", "--ckpt", work.run, "data.root=other")
    assert refused.code == 2 and "category 1 (pink) is not among the 3 that were trained" in refused.err
    done = main("eval", "--ckpt", work.run, "--embeddings", work.vectors, "data.root=other", "--json", "more.json")
    assert (done.code, done.err) == (0, "")
    more, record = json.loads((tmp_path / "more.json").read_text()), json.loads((work.run / "metrics.jsonl").read_text())
    assert more["ar100"] is not None and more["images"] == 6
    assert more["anchor_distance"] == pytest.approx(record["anchor_distance"])  # it is the same detector


def test_a_prediction_looks_for_whatever_is_named(work, main, tmp_path):
    arguments = (work.data / "val" / "1.png", "--threshold", 0, "--out", "found")
    done = main("predict", "--ckpt", work.run, "--embeddings", work.vectors, *arguments)
    assert (done.code, done.err) == (0, "")
    (image,) = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert {d["name"]: d["category_id"] for d in image["detections"]} == {"blue": 1, "green": 2, "pink": 3, "red": 4}


def test_a_class_that_was_held_out_of_training_can_be_evaluated(work, main, tmp_path):
    labels = LabelsConfig(str(work.vectors))
    train(resolved(replace(work.config, labels=labels, task=TaskConfig(classes=("green", "blue")))), tmp_path / "two")
    done = main("eval", "--ckpt", "two", "task.classes=[red]", "--json", "red.json")
    assert (done.code, done.err) == (0, "")
    assert json.loads((tmp_path / "red.json").read_text())["ar100"] is not None


@pytest.mark.parametrize("host", [HOST, DabDetrConfig(queries=9, hidden=16, heads=2, ffn=16)], ids=lambda host: host.name)
def test_vectors_serve_in_half_precision(host):
    model = tiny_model(replace(tiny_config(), host=host), embeddings=torch.randn(3, 6))
    images, targets = batch([2, 1])
    known, _ = Detection(NoiseConfig(groups=2), 3, seed=0)(targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = model.eval()(images, known)
    torch.testing.assert_close(halved.logits.float(), model(images, known).logits, rtol=0.1, atol=0.1)


def test_the_classifier_says_of_each_image_which_classes_it_has(work, main, tmp_path):
    done = main("labels", "classify", "--ckpt", work.run, "--out", "new/labels.json", "--epochs", 30)
    assert (done.code, done.err) == (0, "")
    found = json.loads((tmp_path / "new" / "labels.json").read_text())
    assert found["classes"] == list(NAMES)
    assert list(found["images"]) == [str(10 * i + 3) for i in range(6)]
    assert all(len(row) == 3 and min(row) >= 0 and max(row) <= 1 for row in found["images"].values())
    assert 0 < found["about"]["map"] <= 1
    expected = (
        f"6 validation images: mAP {found['about']['map']:.3f}, every class right in {found['about']['exact']:.1%} of them"
    )
    assert done.out == f"{expected}: new/labels.json\n"
    again = main("labels", "classify", "--ckpt", work.run, "--out", "new/labels.json")
    assert (again.code, again.err) == (2, "new/labels.json: exists; give a new file with --out\n")


def test_an_evaluation_reads_what_the_classifier_wrote(work, main):
    assert main("labels", "classify", "--ckpt", work.run, "--out", "labels.json", "--epochs", 1).code == 0
    done = main("eval", "--ckpt", work.run, "--labels-from", "labels.json")
    assert (done.code, done.err) == (0, "") and "labels of labels.json" in done.out


def test_names_and_the_classes_of_a_dataset_become_vectors(work, main, monkeypatch, tmp_path):
    monkeypatch.setattr(text, "embed_names", lambda names: {name: torch.ones(2) for name in names})
    done = main("labels", "embed", "--out", "x.safetensors", "--data", work.data, "pink", "red")
    assert (done.code, done.err) == (0, "")
    assert done.out == "x.safetensors: 4 classes; train with: labels.embeddings=x.safetensors\n"
    assert load_file(tmp_path / "x.safetensors").keys() == {*NAMES, "pink"}


def test_parameters_are_counted_with_the_projections(work):
    plain, embedded = (
        info(replace(work.config, labels=LabelsConfig(file)), 32, 32, num_classes=3).parameters
        for file in (None, str(work.vectors))
    )
    width, layers, vector = 16, 2, 6
    table = vector * (width - 1) + (width - 1) - 3 * (width - 1)  # the unknown row stays as it was
    head = vector * width + 1 - 3 * (width + 1)
    assert embedded - plain == table + layers * head


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--out", "x.safetensors"), "nothing to embed: give class names, or a dataset with --data"),
        (("--out", ".", "dog"), ".: exists; give a new file with --out"),
    ],
)
def test_what_cannot_be_embedded_is_said(main, arguments, problem):
    done = main("labels", "embed", *arguments)
    assert (done.code, done.out, done.err) == (2, "", f"{problem}\n")
