"""Runs that are stopped after any step, and go on as if they had not been; and what of a run may change in between."""

import json
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dndetr.training.epochs as epochs
from dndetr.console import UserError
from dndetr.resolve import load_preset
from dndetr.training import distributed
from dndetr.training.checkpoint import load_checkpoint, save_checkpoint
from dndetr.training.commands import evaluate_command, settings_of
from dndetr.training.learner import Learner
from dndetr.training.loop import train
from dndetr.training.signals import Stopped
from tests.training import processes
from tests.training.faults import STEPS, differences, exacting, records
from tests.training.tiny import resolved, tiny_config, with_train, write_dataset

TERM = 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", train=12, val=4)


@pytest.fixture(scope="module")
def settings(root):
    return exacting(root)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    return train(resolved(settings), tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def half(settings, tmp_path_factory):
    """A run that was stopped in the middle of its second epoch."""
    run = tmp_path_factory.mktemp("runs") / "half"
    with pytest.MonkeyPatch.context() as patch:
        assert stopped_after(4, settings, run, patch) == TERM
    return run


def signal_after(step: int, patch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Let this process receive a signal within the step, once."""

    def signalled(self: Learner, *arguments):
        losses = original(self, *arguments)
        if self.step_count == step:
            patch.setattr(Learner, "step", original)
            os.kill(os.getpid(), number)
        return losses

    original = Learner.step
    patch.setattr(Learner, "step", signalled)


def stopped_after(step: int, config, run: Path, patch: pytest.MonkeyPatch) -> int:
    """Train, or go on, until a signal within the step; the exit code."""
    signal_after(step, patch)
    return code_of(config, run)


def code_of(config, run: Path) -> int:
    resume = run if (run / "config.yaml").exists() else None
    try:
        train(resolved(config), None if resume else run, resume=resume)
    except Stopped as stopped:
        return stopped.code
    return 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_after_every_step_ends_with_the_same_bits(settings, whole, tmp_path, monkeypatch, workers):
    """Weights, optimiser, averaged weights, begun losses, metrics and matches; one run, stopped five times."""
    config = replace(settings, data=replace(settings.data, workers=workers))
    for step in range(1, 2 * STEPS):
        assert stopped_after(step, config, tmp_path / "run", monkeypatch) == TERM
        assert load_checkpoint(tmp_path / "run", "last.pt").step == step
    assert code_of(config, tmp_path / "run") == 0
    assert differences(tmp_path / "run", whole, but=("data.workers",)) == []


@pytest.mark.parametrize("step", range(1, 2 * STEPS + 1))
def test_a_run_stopped_once_ends_with_the_same_bits(settings, whole, tmp_path, monkeypatch, step):
    assert stopped_after(step, settings, tmp_path / "run", monkeypatch) == TERM
    assert load_checkpoint(tmp_path / "run", "last.pt").step == step
    assert [line["epoch"] for line in logged(tmp_path / "run")] == list(range(1, (step - 1) // STEPS + 1))
    assert code_of(settings, tmp_path / "run") == 0
    assert differences(tmp_path / "run", whole) == []


def logged(run: Path) -> list[dict]:
    return records(run) if (run / "metrics.jsonl").exists() else []


def test_each_step_has_the_same_images_and_random_numbers(settings, tmp_path, monkeypatch):
    """Those of Python, NumPy and PyTorch, whatever was drawn between the stop and the rest."""

    def seen(self: Learner, parts, *more):
        losses = original(self, parts, *more)
        images = [target.image_id for _, targets in parts for target in targets]
        steps.append((self.step_count, images, random.random(), np.random.rand(), torch.rand(1).item()))
        return losses

    steps, original = [], Learner.step
    monkeypatch.setattr(Learner, "step", seen)
    assert code_of(settings, tmp_path / "whole") == 0
    whole, steps = steps, []
    with monkeypatch.context() as patch:
        assert stopped_after(4, settings, tmp_path / "run", patch) == TERM
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert code_of(settings, tmp_path / "run") == 0
    assert steps == whole


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_stopped_in_its_evaluation_ends_with_the_same_bits(settings, whole, tmp_path, monkeypatch, epoch):
    def signalled(model, batches, *arguments, **more):
        asked.append(None)
        if len(asked) == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(model, batches, *arguments, **more)

    asked, original = [], epochs.evaluate
    monkeypatch.setattr(epochs, "evaluate", signalled)
    assert code_of(settings, tmp_path / "run") == TERM
    checkpoint = load_checkpoint(tmp_path / "run", "last.pt")
    assert (checkpoint.epoch, checkpoint.step) == (epoch - 1, epoch * STEPS)
    assert code_of(settings, tmp_path / "run") == 0
    assert differences(tmp_path / "run", whole) == []


def test_a_stopped_run_says_how_to_go_on(settings, tmp_path, monkeypatch, capfd):
    assert stopped_after(2, settings, tmp_path / "run", monkeypatch) == TERM
    out, err = capfd.readouterr()
    assert f"stopped after step 2; go on with: dndetr train --resume {tmp_path / 'run'}" in out
    assert "dndetr: stopping after this step, the run is saved; once more to quit at once" in err


def test_signals_are_as_before_when_a_training_is_over(settings, tmp_path, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stopped_after(1, settings, tmp_path / "run", monkeypatch)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("name", ["previous.pt", "best.pt", "last.pt"])
def test_every_checkpoint_of_a_run_can_be_gone_on_from(settings, tmp_path, whole, name):
    """Also where the others know of later epochs: what they know is made anew."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    longer = with_train(settings, epochs=3)
    train(resolved(longer), None, resume=run)
    expected = Path(shutil.copytree(run, tmp_path / "expected"))
    train(resolved(longer), None, resume=run / "checkpoints" / name)
    assert differences(run, expected) == []


def test_a_run_that_was_never_saved_within_its_epoch_begins_that_anew(settings, whole, tmp_path, monkeypatch):
    """It goes on from the last multiple of train.save_steps, or from the last epoch where that is 0."""

    def dies(self: Learner, *arguments):
        if self.step_count == 5:
            raise KeyboardInterrupt
        return original(self, *arguments)

    original = Learner.step
    for steps, saved in ((0, 3), (2, 4)):
        config, run = with_train(settings, save_steps=steps), tmp_path / str(steps)
        with monkeypatch.context() as patch:
            patch.setattr(Learner, "step", dies)
            with pytest.raises(KeyboardInterrupt):
                train(resolved(config), run)
        assert load_checkpoint(run, "last.pt").step == saved
        train(resolved(config), None, resume=run)
        assert differences(run, whole, but=("train.save_steps",)) == []


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_all_changed_settings_are_told_at_once_and_nothing_is_touched(settings, half, tmp_path):
    run = copied(half, tmp_path)
    other = replace(with_train(settings, lr=0.5, clip=9.0, ema=0.0), noise=None)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError) as error:
        train(resolved(other), None, resume=run, allow_change=["train.clip"])
    told = [line.split(":")[0].strip() for line in error.value.lines[1:]]
    assert told[-2:] == ["train.ema", "train.lr"]
    assert all(key.startswith("noise") for key in told[:-2]) and len(told) > 2
    assert "  train.lr: 0.001 there, 0.5 now" in error.value.lines
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("allowed", ["train.lr", "train"])
def test_a_changed_setting_that_is_allowed_is_used(settings, half, whole, tmp_path, allowed):
    run = copied(half, tmp_path)
    train(resolved(with_train(settings, lr=5e-4)), None, resume=run, allow_change=[allowed])
    first, second = records(run)
    assert first == records(whole)[0]
    assert second["lr"] == pytest.approx(records(whole)[1]["lr"] / 2)
    assert second["loss"] != records(whole)[1]["loss"]
    rates = [group["lr"] for group in load_checkpoint(run, "last.pt").optimizer["param_groups"]]
    assert rates[0] == second["lr"]
    assert load_checkpoint(run, "last.pt").config["train"]["lr"] == 5e-4


@pytest.mark.parametrize("words", [["train.lrr"], ["data set", "train.lr"], [""]])
def test_a_word_that_is_no_setting_is_refused(settings, half, words):
    with pytest.raises(UserError, match="not a setting, a block of settings, or dataset") as error:
        train(resolved(settings), None, resume=half, allow_change=words)
    assert str(error.value).startswith(f"--allow-change {words[0]}:")


def test_another_batch_size_begins_the_epoch_anew(settings, half, whole, tmp_path):
    run = copied(half, tmp_path)
    train(resolved(with_train(settings, batch_size=6)), None, resume=run, allow_change=["train.batch_size"])
    first, second = records(run)
    assert first == records(whole)[0]
    assert (second["step"], load_checkpoint(run, "last.pt").steps_per_epoch) == (4, 2)


def test_another_batch_size_in_the_first_epoch_after_a_step_that_was_passed_over(settings, tmp_path, monkeypatch):
    """The averaged weights must not move by more than the whole way to the weights."""
    assert stopped_after(1, settings, tmp_path / "run", monkeypatch) == TERM
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    save_checkpoint(last, replace(load_checkpoint(last), skipped=10))
    train(resolved(with_train(settings, batch_size=6)), None, resume=tmp_path / "run", allow_change=["train.batch_size"])
    assert load_checkpoint(last).step == 4


def test_annotations_that_changed_under_the_same_path_are_noticed(settings, root, half, tmp_path):
    run, file = copied(half, tmp_path), root / "annotations" / "instances_train.json"
    before = {each: each.read_text() for each in file.parent.iterdir()}
    content = json.loads(before[file])
    content["annotations"] = content["annotations"][:-2]
    try:
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"instances_train.json changed since the run began .* --allow-change dataset$"):
            train(resolved(settings), None, resume=run)
        train(resolved(settings), None, resume=run, allow_change=["dataset"])
        assert [line["epoch"] for line in records(run)] == [1, 2]
        for each in file.parent.iterdir():
            each.write_text(before[each].replace('"red"', '"zebra"'))
        with pytest.raises(UserError, match="had other categories"):
            train(resolved(with_train(settings, epochs=3)), None, resume=run, allow_change=["dataset"])
    finally:
        for each, text in before.items():
            each.write_text(text)


def test_a_run_goes_on_with_the_classes_that_it_began_with(settings, tmp_path):
    """Earlier versions kept a category that only groups others, and equal names."""
    root = write_dataset(tmp_path / "data")
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"] = [entry | {"supercategory": "red"} for entry in content["categories"]]
        content["categories"].append({"id": 9, "name": "things", "supercategory": "none"})
        file.write_text(json.dumps(content))
    config = replace(with_train(settings, epochs=1), data=replace(settings.data, root=str(root)))
    run = train(resolved(config), tmp_path / "run")
    assert load_checkpoint(run, "last.pt").category_ids == [2, 5, 7, 9]
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"] = [entry | {"supercategory": "things"} for entry in content["categories"]]
        content["categories"][0]["name"] = content["categories"][1]["name"]
        file.write_text(json.dumps(content))
    last = run / "checkpoints" / "last.pt"
    before = load_checkpoint(last)
    save_checkpoint(last, replace(before, category_names=["green", "green", "blue", "things"]))
    train(resolved(with_train(config, epochs=2)), None, resume=run, allow_change=["dataset"])
    after = load_checkpoint(last)
    assert (after.category_ids, after.category_names) == ([2, 5, 7, 9], ["green", "green (5)", "blue", "things"])


def test_a_dataset_that_moved_is_still_the_same(settings, root, half, whole, tmp_path):
    run, moved = copied(half, tmp_path), Path(shutil.copytree(root, tmp_path / "moved"))
    config = replace(settings, data=replace(settings.data, root=str(moved)))
    train(resolved(config), None, resume=run)
    assert (
        differences(run, whole, but=("data.root",)) == ["best.pt: config"] or differences(run, whole, but=("data.root",)) == []
    )


def test_a_path_that_is_no_run_is_refused(settings, half, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    shutil.copy(half / "checkpoints" / "last.pt", tmp_path / "last.pt")
    for path in ("empty", "file", "last.pt", "nowhere"):
        with pytest.raises(UserError, match=f"{path}: not a run folder .*nothing to resume"):
            train(resolved(settings), None, resume=tmp_path / path)
    (tmp_path / "bare").mkdir()
    shutil.copy(half / "config.yaml", tmp_path / "bare")
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        train(resolved(settings), None, resume=tmp_path / "bare")


@pytest.fixture(scope="module")
def pair(root, tmp_path_factory):
    """What two processes did: a whole run, and one in which only the second process received a signal, gone on with."""
    folder = tmp_path_factory.mktemp("pair")
    ended = processes.run(folder, 2, two_processes, root, folder)
    assert [each.code for each in ended] == [0, 0], ended
    return folder


def two_processes(root: Path, folder: Path) -> None:
    config, codes = exacting(root), []
    with distributed.processes("cpu"), pytest.MonkeyPatch.context() as patch:
        rank = distributed.rank()
        codes.append(code_of(config, folder / "whole"))
        for step in (2, 5):
            if rank == 1:
                signal_after(step, patch)
            distributed.gather(None)
            codes.append(code_of(config, folder / "stopped"))
            distributed.gather(None)
            if rank == 0 and step == 5:
                shutil.copytree(folder / "stopped", folder / "alone")
            codes.append(load_checkpoint(folder / "stopped", "last.pt").step)
        codes.append(code_of(config, folder / "stopped"))
    (folder / f"{rank}.json").write_text(json.dumps(codes))


def test_two_processes_stop_at_the_same_step_where_one_received_the_signal(pair):
    for rank in (0, 1):
        assert json.loads((pair / f"{rank}.json").read_text()) == [0, TERM, 2, TERM, 5, 0]


def test_a_run_of_two_processes_that_was_stopped_ends_with_the_same_bits(pair):
    assert differences(pair / "stopped", pair / "whole") == []


def test_a_run_of_two_processes_can_be_gone_on_with_by_one(pair, settings):
    """Dropout differs from there on, for one step: the mean over the epoch is near."""
    assert code_of(settings, pair / "alone") == 0
    ours, theirs = records(pair / "alone"), records(pair / "whole")
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    for name in ("loss", "dn_loss", "cls_0", "box_1"):
        assert ours[1][name] == pytest.approx(theirs[1][name], rel=0.05)


def test_a_run_keeps_the_range_that_its_first_images_showed(tmp_path):
    """It is plain numbers in the run, `auto` in the preset that it is gone on with, and stays when the images are others."""
    root = write_dataset(tmp_path / "data", train=4, val=2)
    for file in root.glob("*/*.png"):
        numbers = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 10 + 1000
        Image.fromarray(numbers).save(file)
    settings = tiny_config(root, epochs=1)
    run = train(resolved(settings), tmp_path / "run")
    found = load_preset(run / "config.yaml").config.data.range
    low, high = map(int, found.split(","))
    assert 1000 <= low < 1100 and 2000 < high < 3600 and load_checkpoint(run).config["data"]["range"] == found
    Image.fromarray(np.full((32, 40), 60000, np.uint16)).save(root / "train" / "0.png")
    train(resolved(with_train(settings, epochs=2)), None, resume=run)
    assert load_checkpoint(run, prefer="last.pt").config["data"]["range"] == found
    assert settings_of(load_checkpoint(run), (), run).data.bounds == (low, high)
    other = replace(settings, data=replace(settings.data, range="0,4095"))
    with pytest.raises(UserError, match="data.range"):
        train(resolved(with_train(other, epochs=3)), None, resume=run)
    assert f"{low} to {high} is seen as 0 to 255 (data.range)" in (run / "train.log").read_text()


def test_a_run_that_is_older_than_its_range_goes_on_as_it_began(tmp_path):
    """A 16-bit picture was seen from 0 to 65535."""
    root = write_dataset(tmp_path / "data", train=4, val=2)
    run = train(resolved(tiny_config(root, epochs=1)), tmp_path / "run")
    before = load_checkpoint(run, prefer="last.pt")
    data = {key: value for key, value in before.config["data"].items() if key not in ("range", "exif", "alpha")}
    save_checkpoint(run / "checkpoints" / "last.pt", replace(before, config=before.config | {"data": data}))
    for file in root.glob("*/*.png"):
        Image.fromarray(np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 10).save(file)
    train(resolved(tiny_config(root, epochs=2)), None, resume=run)
    assert load_checkpoint(run, prefer="last.pt").config["data"]["range"] == "auto"


def test_a_run_knows_its_data_from_any_folder(tmp_path, monkeypatch):
    """data.root is kept as an absolute path, and by the data's digests, where it was moved with the run."""
    write_dataset(tmp_path / "here" / "data")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    settings = resolved(tiny_config("data", epochs=1))
    run = train(settings, "run")
    assert load_preset("run/config.yaml").config.data.root == str(tmp_path / "here" / "data")
    before = evaluate_command("run")
    monkeypatch.chdir(tmp_path / "there")
    assert evaluate_command(tmp_path / "here" / run) == before
    moved = (tmp_path / "here").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="no such folder; set data.root to a dataset"):
        evaluate_command(moved / "run")
    assert evaluate_command(moved / "run", [f"data.root={moved / 'data'}"]) == before
    longer = tiny_config(os.path.relpath(moved / "data"), epochs=2)
    train(resolved(longer), None, resume=moved / "run")
    assert [line["epoch"] for line in records(moved / "run")] == [1, 2]
    assert load_preset(moved / "run" / "config.yaml").config.data.root == str(moved / "data")


def test_an_evaluation_on_another_dataset_forgets_the_run_s_own(tmp_path):
    """Else files that were named in training would go before a data.root that is named now, without a word."""
    root, other = write_dataset(tmp_path / "data"), write_dataset(tmp_path / "other", val=4)
    named = [f"data.{split}={root}/annotations/instances_{split}.json" for split in ("train", "val")]
    config = tiny_config(root, epochs=1)
    files = {key.removeprefix("data."): value for key, _, value in (text.partition("=") for text in named)}
    (root / "all").mkdir()
    for split in ("train", "val"):  # files of one name in both splits
        for file in (root / split).iterdir():
            shutil.copy(file, root / "all" / f"{split}-{file.name}")
        annotations = root / "annotations" / f"instances_{split}.json"
        annotations.write_text(annotations.read_text().replace('"file_name": "', f'"file_name": "{split}-'))
    config = replace(config, data=replace(config.data, root="shapes", images=str(root / "all"), **files))
    run = train(resolved(config), tmp_path / "run")
    checkpoint = load_checkpoint(run)
    moved = settings_of(checkpoint, [f"data.root={other}"], run).data
    assert (moved.root, moved.train, moved.val, moved.images) == (str(other), "", "", "")
    evaluate_command(run, [f"data.root={other}"], tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["images"] == 4
    back = [f"data.val={other}/annotations/instances_val.json", f"data.images={other}/val"]
    assert settings_of(checkpoint, back, run).data.root == "shapes"


def test_a_root_and_files_are_not_named_at_once(root):
    with pytest.raises(UserError, match="data.root must be left out where data.train or data.val name files"):
        load_preset("dn-dab-tiny", [f"data.root={root}", "data.train=x.json", f"data.images={root}"])
