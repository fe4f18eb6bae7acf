"""Whole trainings at tiny size: what they leave behind, and going on as if they had never stopped."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import faster_coco_eval
import numpy as np
import PIL.Image
import pytest
import torch

import dndetr.training.epochs as epochs
from dndetr.analysis.anchors import analyze_anchors
from dndetr.console import UserError
from dndetr.data.coco import Categories
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.hosts.deformable_detr import DeformableDetrConfig
from dndetr.models.structures import Output
from dndetr.predict import find_objects, predict
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.commands import evaluate_command
from dndetr.training.evaluate import METRICS
from dndetr.training.loop import train
from tests.training.faults import differences
from tests.training.tiny import CATEGORY_IDS, resolved, tiny_config, with_train, write_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def settings(root):
    config = tiny_config(root, epochs=3, drop_epoch=1.5, ema=0.5)
    return replace(config, host=replace(config.host, dropout=0.1))  # dropout: random numbers must go on as well


@pytest.fixture(scope="module")
def run(tmp_path_factory, settings):
    return train(resolved(settings), tmp_path_factory.mktemp("runs") / "whole")


def records(run):
    """The metrics of a run, but for the time they took."""
    times = {"seconds": 0, "data_wait": 0}
    return [json.loads(line) | times for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_behind(run):
    for name in ("config.yaml", "env.json", "metrics.jsonl", "metrics.csv", "train.log", "checkpoints/last.pt",
                 "checkpoints/best.pt", "plots/losses.png", "plots/ap.png", "plots/instability.png",
                 "plots/anchor_distance.png", "eval/detections.json"):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    lines = records(run)
    head = ["epoch", "step", "seconds", "lr", "loss", "dn_loss"]
    assert list(lines[0])[:6] == head
    assert {*METRICS, "instability", "anchor_distance", "cls_0", "dn_giou_1"} <= lines[0].keys()
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [line["lr"] for line in lines] == pytest.approx([1e-3, 1e-4, 1e-4])
    assert lines[0]["instability"] is None
    assert lines[1]["instability"] is not None
    with open(run / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file).fieldnames) == list(lines[0])
    with np.load(run / "matches" / "epoch_002.npz") as matches:
        assert matches["image_id"].tolist() == [10 * i + 3 for i in range(6)]
        assert matches["matched"].shape == (6, 9)
    pictures = sorted((run / "predictions").glob("*.jpg"))
    assert len(pictures) == 6
    assert min(PIL.Image.open(pictures[0]).size) >= 400
    assert {d["category_id"] for d in json.loads((run / "eval" / "detections.json").read_text())} <= set(CATEGORY_IDS)


def test_the_output_is_plain_where_it_is_piped(settings, tmp_path, capsys):
    train(resolved(with_train(settings, epochs=1)), tmp_path / "run")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "7 with objects, 3 without" in shown
    assert "epoch 1/1  loss" in shown
    assert f"dndetr eval --ckpt {tmp_path / 'run'}" in shown
    assert (tmp_path / "run" / "train.log").read_text() == shown


@pytest.mark.parametrize("stopped", ["between epochs", "before the checkpoint"])
def test_resuming_gives_the_same_bits(run, settings, tmp_path, monkeypatch, stopped):
    """A run killed after its second epoch, or while that was being kept, ends like the one that was not."""

    def killed(path, checkpoint, previous=None):
        if checkpoint.epoch == 2 and (stopped == "before the checkpoint" or checkpoint.begun):
            raise KeyboardInterrupt
        return original(path, checkpoint, previous)

    original = epochs.save_checkpoint
    monkeypatch.setattr(epochs, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train(resolved(settings), tmp_path / "run")
    monkeypatch.setattr(epochs, "save_checkpoint", original)
    assert load_checkpoint(tmp_path / "run", prefer="last.pt").epoch < 3
    train(resolved(settings), None, resume=tmp_path / "run")
    assert records(tmp_path / "run") == records(run)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (load_checkpoint(r / "checkpoints" / name) for r in (tmp_path / "run", run))
        for part in ("model", "ema", "optimizer"):
            torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=0, atol=0)
        assert (ours.epoch, ours.step, ours.best_ap) == (theirs.epoch, theirs.step, theirs.best_ap)


def test_numbers_are_counted_as_the_settings_say(run, settings, tmp_path, monkeypatch):
    """Also where a run goes on with the other counter."""
    counted = []

    class Counter(faster_coco_eval.COCOeval_faster):
        def accumulate(self):
            counted.append("faster_coco_eval")
            super().accumulate()

    monkeypatch.setattr(faster_coco_eval, "COCOeval_faster", Counter)
    fast = replace(settings, eval=replace(settings.eval, counter="faster_coco_eval"))
    train(resolved(with_train(fast, epochs=2)), tmp_path / "run")
    assert len(counted) == 2
    train(resolved(settings), None, resume=tmp_path / "run")
    assert len(counted) == 2
    for ours, theirs in zip(records(tmp_path / "run"), records(run), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)
    numbers = [evaluate_command(run, [f"eval.counter={name}"]) for name in ("pycocotools", "faster_coco_eval")]
    assert len(counted) == 3
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-12)


def test_a_counter_that_is_not_installed_is_refused_before_anything_is_read(run, settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    config = replace(settings, data=replace(settings.data, root="nowhere"))
    sentence = r"^eval.counter=faster_coco_eval needs its package: pip install 'dndetr\[fast\]'$"
    with pytest.raises(UserError, match=sentence):
        train(resolved(replace(config, eval=replace(settings.eval, counter="faster_coco_eval"))), tmp_path / "run")
    with pytest.raises(UserError, match=sentence):
        evaluate_command(run, ["eval.counter=faster_coco_eval", "data.root=nowhere"])


def test_a_run_can_be_made_longer(run, settings, tmp_path):
    train(resolved(with_train(settings, epochs=2)), tmp_path / "run")
    train(resolved(with_train(settings, epochs=3)), None, resume=tmp_path / "run")
    assert records(tmp_path / "run") == records(run)


def test_resuming_with_other_settings_is_refused_with_all_of_them(run, settings):
    other = with_train(settings, lr=0.5, clip=9.0, epochs=5, device="auto")
    with pytest.raises(UserError) as error:
        train(resolved(replace(other, data=replace(other.data, workers=1))), None, resume=run)
    assert [line.split(":")[0].strip() for line in error.value.lines[1:]] == ["train.clip", "train.lr"]


def test_resuming_a_finished_run_changes_nothing(run, settings, tmp_path):
    """So that who starts it again after every kill, as torchrun does, comes to an end."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    train(resolved(settings), None, resume=copy)
    assert "all 3 epochs are done; raise train.epochs to go on" in (copy / "train.log").read_text()
    assert differences(copy, run) == []


def test_a_run_is_not_resumed_with_fewer_epochs_than_it_has(run, settings):
    with pytest.raises(UserError, match="3 epochs are done, more than train.epochs, 2"):
        train(resolved(with_train(settings, epochs=2)), None, resume=run)


@pytest.mark.parametrize("changes", ["views", "noise"])
def test_every_epoch_has_its_own_views_and_noise(settings, tmp_path, changes):
    """With all images in one batch and nothing learned, epochs differ by what is drawn for them alone."""
    config = with_train(settings, epochs=2, batch_size=10, lr=1e-30, backbone_lr=1e-30, ema=0.0)
    still = replace(config.data, sizes=(32,), flip=0.5 if changes == "views" else 0.0)
    config = replace(config, data=still, host=replace(config.host, dropout=0.0))
    train(resolved(config), tmp_path / "run")
    first, second = records(tmp_path / "run")
    assert (first["cls_1"] == pytest.approx(second["cls_1"], rel=1e-6)) == (changes == "noise")
    assert first["dn_box_1"] != pytest.approx(second["dn_box_1"], rel=1e-6)


def test_workers_do_not_change_results(run, settings, tmp_path):
    config = replace(settings, data=replace(settings.data, workers=2))
    train(resolved(config), tmp_path / "run")
    assert records(tmp_path / "run") == records(run)


def test_an_existing_run_is_refused_before_anything_is_read(run, settings):
    before = records(run)
    with pytest.raises(UserError, match="not empty"):
        train(resolved(replace(settings, data=replace(settings.data, root="nowhere"))), run)
    assert records(run) == before


def test_init_from_takes_the_weights_only(run, settings, tmp_path):
    frozen = with_train(settings, epochs=1, lr=1e-12, backbone_lr=0.0, ema=0.0)
    train(resolved(frozen), tmp_path / "run", init_from=run)
    ours, theirs = load_checkpoint(tmp_path / "run", prefer="last.pt"), load_checkpoint(run)
    assert ours.step == 2
    torch.testing.assert_close(ours.model["anchors"], theirs.weights["anchors"])


def with_zebras(root):
    """The dataset with another category in the place of "red"."""
    write_dataset(root)
    for file in (root / "annotations").iterdir():
        file.write_text(file.read_text().replace('"red"', '"zebra"'))
    return root


def test_init_from_moves_classes_by_name(run, settings, tmp_path, capsys):
    """The same images, where one category is gone and one is new."""
    root = with_zebras(tmp_path / "data")
    frozen = with_train(settings, epochs=1, lr=1e-12, backbone_lr=0.0, ema=0.0)
    train(resolved(replace(frozen, data=replace(frozen.data, root=str(root)))), tmp_path / "run", init_from=run)
    assert f"weights            {run}, epoch" in (shown := capsys.readouterr().out)
    assert "new classes begin at random: zebra\n" in shown
    ours, theirs = load_checkpoint(tmp_path / "run", prefer="last.pt").model, load_checkpoint(run).weights
    assert load_checkpoint(run).category_names == ["red", "green", "blue"]
    for key in ("heads.cls.0.weight", "label.table.weight"):
        torch.testing.assert_close(ours[key][1:], theirs[key][1:])
        assert not torch.allclose(ours[key][0], theirs[key][0], atol=1e-4)


def test_init_from_another_architecture_is_refused_and_writes_nothing(run, settings, tmp_path):
    wider = replace(settings, host=replace(settings.host, hidden=32))
    for root in (settings.data.root, str(with_zebras(tmp_path / "data"))):  # of the same classes, and of others
        with pytest.raises(UserError, match="these do not fit"):
            train(resolved(replace(wider, data=replace(wider.data, root=root))), tmp_path / "run", init_from=run)
        assert not (tmp_path / "run").exists()


def test_epochs_between_evaluations_have_no_ap(settings, tmp_path):
    config = replace(with_train(settings, epochs=3), eval=replace(settings.eval, every=2))
    train(resolved(config), tmp_path / "run")
    lines = records(tmp_path / "run")
    assert [line["ap"] is None for line in lines] == [True, False, False]
    assert [line["instability"] is None for line in lines] == [True, True, False]


def test_a_baseline_has_no_denoising_loss(settings, tmp_path):
    host = DeformableDetrConfig(
        decoder="deformable", query="point", queries=9, levels=1, points=2, hidden=16, heads=2, ffn=16,
        encoder_layers=1, decoder_layers=1,
    )  # fmt: skip
    train(resolved(replace(with_train(settings, epochs=1), noise=None, host=host)), tmp_path / "run")
    (line,) = records(tmp_path / "run")
    assert line["dn_loss"] is None
    assert not any(name.startswith("dn_") for name in line.keys() - {"dn_loss"})


def test_eval_of_a_run_gives_the_ap_of_its_best_epoch(run, tmp_path):
    best = max(records(run), key=lambda line: line["ap"])
    found = evaluate_command(run, ["eval.batch_size=2", "data.workers=0"], tmp_path / "out" / "eval.json")
    written = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found == {name: written[name] for name in METRICS}
    assert [found[name] for name in METRICS] == pytest.approx([best[name] for name in METRICS], abs=1e-6)


def test_eval_changes_no_setting_of_the_model(run):
    with pytest.raises(UserError, match="host.queries: fixed by the checkpoint"):
        evaluate_command(run, ["host.queries=5"])


def test_predicted_boxes_end_at_the_image():
    class Huge(torch.nn.Linear):
        def forward(self, images, known):
            boxes = torch.tensor([[[[0.5, 0.5, 2.0, 0.5]]]])
            return Output(torch.ones(1, 1, 1, 1), boxes, boxes[0], QueryLayout(groups=0, slots=0, queries=1))

    picture = PIL.Image.new("RGB", (40, 32))
    (found,) = find_objects(Huge(1, 1), picture, tiny_config(), Categories((7,), ("x",)), threshold=0.5)
    assert found == {"box": [0, 8, 40, 24], "name": "x", "category_id": 7, "score": 0.7311}


def test_predict_writes_pictures_and_json_and_names_what_it_could_not_read(run, root, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    (tmp_path / "in" / "notes.txt").write_text("no image by its name")
    PIL.Image.open(root / "val" / "1.png").save(tmp_path / "in" / "1.png")
    with pytest.raises(UserError) as error:
        predict(run, [tmp_path / "in", root / "val" / "1.png", tmp_path / "missing"], tmp_path / "out", threshold=0.0)
    assert len(error.value.lines) == 2
    assert "missing" in str(error.value)
    assert "broken.png" in str(error.value)
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [p["file"] for p in predictions] == [str(tmp_path / "in" / "1.png"), str(root / "val" / "1.png")]
    first = predictions[0]["detections"]
    assert len(first) == 20  # eval.top
    assert {d["category_id"] for d in first} <= set(CATEGORY_IDS)
    assert all(0 <= x <= 40 and 0 <= y <= 32 for d in first for x, y in (d["box"][:2], d["box"][2:]))
    assert first == predictions[1]["detections"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1-2.jpg", "1.jpg", "predictions.json"]
    with pytest.raises(UserError, match="not empty"):
        predict(run, [root / "val"], tmp_path / "out")
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        predict(run, [tmp_path / "nowhere"], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_predict_goes_down_and_keeps_the_places_of_what_it_finds(run, root, tmp_path, capsys):
    """Of several pages the first is taken; what is passed over is counted."""
    folder = tmp_path / "in"
    (folder / "sub" / "deep").mkdir(parents=True)
    picture = PIL.Image.open(root / "val" / "1.png")
    picture.save(folder / "sub" / "deep" / "1.png")
    picture.save(folder / "sub" / "pages.tif", save_all=True, append_images=[PIL.Image.new("RGB", (9, 9))])
    picture.save(folder / "none", format="png")
    (folder / "1.heic").write_bytes(b"none that is read here")
    found = {p["file"]: p for p in predict(run, [folder], tmp_path / "out", threshold=0.0)}
    drawn = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.jpg"))
    assert drawn == ["none.jpg", "sub/deep/1.jpg", "sub/pages.jpg"]
    one, other, pages = (found[str(folder / name)] for name in ("none", "sub/deep/1.png", "sub/pages.tif"))
    assert one["detections"] == other["detections"] == pages["detections"]
    said = capsys.readouterr().out
    assert "passed over 1 file of no kind that is read here: 1 .heic\n" in said
    assert "several pages or frames in 1 of 3 images; the first is read\n" in said


def test_a_run_reads_its_pictures_alike_wherever_it_does(root, tmp_path):
    """Those of 12 bits, transparent and upside down are to it what plain copies are to another run."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    shutil.copytree(root, plain)
    shutil.copytree(root, other)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    for i, file in enumerate(sorted(other.glob("*/*.png"))):
        pixels = np.asarray(PIL.Image.open(file).convert("L"))
        PIL.Image.fromarray(np.dstack([pixels] * 3)).save(plain / file.relative_to(other))
        clear = np.dstack([pixels] * 3 + [np.zeros_like(pixels)])
        PIL.Image.fromarray(pixels.astype(np.uint16) * 16 + 100 if i % 2 else clear).save(file, exif=exif)
    config = tiny_config(plain, epochs=1)
    reading = {"root": str(other), "range": "100,4180", "exif": "ignore", "alpha": "drop"}
    settings = config, replace(config, data=replace(config.data, **reading))
    runs = [train(resolved(each), tmp_path / str(i) / "run") for i, each in enumerate(settings)]
    assert differences(*runs, but=tuple(f"data.{name}" for name in reading)) == []
    found = [predict(run, [data / "val"], run / "out", 0.0) for run, data in zip(runs, (plain, other), strict=True)]
    assert [p["detections"] for p in found[0]] == [p["detections"] for p in found[1]]
    told = [analyze_anchors([run], images=2, out=run / "anchors") for run in runs]
    assert [p.distances.tolist() for p in told[0]] == [p.distances.tolist() for p in told[1]]
    drawn = [file.relative_to(runs[0]) for pattern in ("*.jpg", "arrows/*.png") for file in runs[0].rglob(pattern)]
    assert len(drawn) == 6 + 6 + 2
    for file in drawn:
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes(), file
