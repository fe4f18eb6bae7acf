"""Broken data through every command that reads it: a sentence or the right result, and never a traceback or a hang."""

import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data import annotations, augment, images, locate, store
from dndetr.data.check import check_dataset, lines
from dndetr.data.coco import load_split
from dndetr.data.images import SizeError, read_image
from dndetr.predict import predict
from dndetr.resolve import leaves, to_yaml
from dndetr.training.commands import evaluate_command
from dndetr.training.evaluate import ground_truth
from dndetr.training.loop import train
from tests.data.broken import IMAGE, IMAGES, KINDS, OBJECTS, Kind, write_broken
from tests.data.coco_files import at
from tests.training.tiny import resolved, tiny_config, write_dataset

HANGS = 120  # seconds, even beside other work

by_name = {kind.name: kind for kind in KINDS}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=by_name)
pictures = [kind for kind in KINDS if kind.picture]


@pytest.fixture(autouse=True)
def no_hang():
    """A command that waits for ever fails here, not the whole suite."""

    def stop(*_):
        raise TimeoutError(f"still not done after {HANGS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def no_warnings():
    """What Python warns of would stand between the lines of a terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="PIL")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training on the sound dataset."""
    root = write_dataset(tmp_path_factory.mktemp("sound") / "data", train=IMAGES, val=IMAGES)
    return train(resolved(tiny_config(root, epochs=1)), root.parent / "run")


def refusal(command, *arguments, **options) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        command(*arguments, **options)
    return caught.value.lines


def tells(said, kind: Kind, split: str) -> bool:
    """Whether one line has all the words, and says where. What is read from a picture names its file, not its id."""
    for line in said:
        of_file = f"instances_{split}.json" in line
        words = [word for word in kind.words if of_file or word != IMAGE]
        if (of_file or f"{split}/" in line) and all(word in line for word in words):
            return "\n" not in line
    return False


def test_there_are_many_kinds():
    assert len(KINDS) == len(by_name) > 100
    assert {kind.outcome for kind in KINDS} == {"refused", "repaired", "sound"}


@every_kind
def test_the_check_names_it_or_finds_nothing(tmp_path, kind):
    write_broken(tmp_path / "data", kind)
    report = check_dataset(at(tmp_path / "data"))
    said = [str(defect) for defect in report.defects]
    if kind.outcome == "sound":
        assert not said and lines(report)[-1] == "no defects"
    else:
        assert tells(said, kind, "train") and tells(said, kind, "val")
    if kind.outcome != "refused":
        assert len(said) == 2 * (kind.outcome == "repaired")
        assert [(c.images, c.objects) for c in report.splits.values()] == [(IMAGES, kind.objects)] * 2


@every_kind
def test_training_refuses_it_or_has_the_right_objects(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("dndetr.training.epochs.plot_run", lambda *_: None)  # most of the time, and nothing of the data
    root = tmp_path / "data"
    write_broken(root, kind)
    settings = resolved(tiny_config(root, epochs=1))
    if kind.outcome == "refused":
        assert tells(refusal(train, settings, tmp_path / "run"), kind, "train")
        return
    split = load_split(at(root), "train")
    assert len(split.images) == IMAGES and len(split.labels) == kind.objects
    corners = split.boxes[:, :2] - split.boxes[:, 2:] / 2, split.boxes[:, :2] + split.boxes[:, 2:] / 2
    assert corners[0].min() >= -1e-6 and corners[1].max() <= 1 + 1e-6 and (split.boxes[:, 2:] > 0).all()
    train(settings, tmp_path / "run")
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(record["loss"]) and record["ap"] is not None


@every_kind
def test_evaluation_refuses_it_or_measures_the_right_objects(tmp_path, kind, run):
    root = tmp_path / "data"
    write_broken(root, kind, splits=("val",))
    if kind.outcome == "refused":
        assert tells(refusal(evaluate_command, run, [f"data.root={root}"]), kind, "val")
        return
    split = load_split(at(root), "val", load_split(at(root), "train").categories)
    objects = [entry for entry in ground_truth(split).anns.values() if not entry["iscrowd"]]
    assert len(objects) == OBJECTS  # as the file has them, not as they are mended
    assert evaluate_command(run, [f"data.root={root}"])["ap"] is not None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.outcome == "sound"], ids=lambda kind: kind.name)
def test_pictures_are_as_a_viewer_shows_them(tmp_path, kind):
    files = write_broken(tmp_path / "data", kind)["train"]
    for record in load_split(at(tmp_path / "data"), "train").images:
        picture = read_image(record.path, size=(record.width, record.height))
        assert picture.mode == "RGB" and picture.size == (record.width, record.height)
        for place, colour in files.colours.items() if record.path == files.picture else ():
            assert np.abs(np.subtract(picture.getpixel(place), colour)).max() <= 6, place
    assert bool(files.colours) == kind.picture


def test_prediction_shows_sound_pictures_and_names_each_of_the_others(tmp_path, run):
    broken = [kind for kind in pictures if kind.outcome == "refused"]
    files = {kind: write_broken(tmp_path / kind.name, kind)["train"] for kind in pictures}
    with pytest.raises(UserError) as caught:
        predict(run, [file.picture for file in files.values()], tmp_path / "out", threshold=0)
    assert len(caught.value.lines) == len(broken) > 5
    for kind, line in zip(broken, caught.value.lines, strict=True):
        assert line.startswith(f"{files[kind].picture}: ") and kind.words[-1] in line
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    seen = {entry["file"]: (entry["width"], entry["height"], len(entry["detections"])) for entry in found}
    sizes = {str(f.picture): (f.image["width"], f.image["height"], 20) for k, f in files.items() if k not in broken}
    assert seen == sizes
    assert len(list((tmp_path / "out").glob("*.jpg"))) == len(sizes) > 10


@pytest.mark.parametrize(
    "name, told", [("pipe", "not a regular file"), ("device", "not a regular file"), ("x" * 5000, "no such")]
)
def test_prediction_waits_for_no_pipe(tmp_path, run, name, told):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (line,) = refusal(predict, run, [tmp_path / name], tmp_path / "out")
    assert line.startswith(f"{tmp_path / name}: ") and told in line


def test_a_name_of_several_lines_is_told_in_one(tmp_path, run):
    (tmp_path / "a\n\x1b[2J.png").touch()
    (line,) = refusal(predict, run, [tmp_path], tmp_path / "out")
    assert line.startswith(f"{tmp_path}/a\ufffd\ufffd[2J.png: cannot be read")


def test_prediction_with_the_longest_of_names(tmp_path, run):
    file = tmp_path / ("é" * 125 + ".png")
    Image.new("RGB", (40, 32)).save(file)
    predict(run, [file, tmp_path], tmp_path / "out")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / file.name).hardlink_to(file)
    predict(run, [file, tmp_path / "more"], tmp_path / "twice")
    assert len(list((tmp_path / "twice").glob("*-2.jpg"))) == 1


def test_mistakes_of_the_validation_split_are_found_before_the_training(tmp_path):
    write_broken(tmp_path / "data", by_name["item_bbox_nan"], splits=("val",))
    said = refusal(train, resolved(tiny_config(tmp_path / "data")), tmp_path / "run")
    assert tells(said, by_name["item_bbox_nan"], "val") and not (tmp_path / "run").exists()


def test_a_validation_split_without_objects_measures_nothing(tmp_path, run):
    root = write_broken(tmp_path / "data", Kind("", empty, "", (), 0, False), splits=("val",))["val"].root
    assert evaluate_command(run, [f"data.root={root}"])["ap"] is None
    assert not check_dataset(at(root)).defects
    write_broken(tmp_path / "more", Kind("", empty, "", (), 0, False), splits=("train",))
    told = "instances_train.json: none of the 4 images has an object to train on"
    assert [str(defect).endswith(told) for defect in check_dataset(at(tmp_path / "more")).defects] == [True]
    assert refusal(train, resolved(tiny_config(tmp_path / "more")), tmp_path / "run")[0].endswith(told)


def test_a_value_too_deep_to_be_shown_is_refused_all_the_same():
    """JSON is read from fewer calls down than messages are written."""
    value = []
    for _ in range(5000):
        value = [value]
    found = annotations.Annotations(Path("x.json"))
    annotations.add_image(found, {"id": 3, "file_name": value, "width": 4, "height": 4}, "images[0]")
    told = "file_name must be text without control characters, got something deeply nested (images[0])"
    assert [defect.message for defect in found.defects] == [told]


def empty(files):
    files.content["annotations"] = []


def test_the_data_root_itself_may_be_a_link(tmp_path):
    write_dataset(tmp_path / "real", train=IMAGES, val=IMAGES)
    (tmp_path / "link").symlink_to("real")
    assert not check_dataset(at(tmp_path / "link")).defects
    assert len(load_split(at(tmp_path / "link"), "train").labels) == OBJECTS


def test_what_leads_out_of_the_root_is_not_even_opened(tmp_path, monkeypatch):
    files = write_broken(tmp_path / "data", by_name["link_out_of_the_root"])["train"]
    opened = []
    monkeypatch.setattr("dndetr.data.check.read_image", lambda path, *_, **__: opened.append(path))
    check_dataset(at(tmp_path / "data"))
    assert len(opened) == 2 * (IMAGES - 1) and files.picture not in opened


def test_folders_are_listed_once_and_only_links_are_followed(tmp_path, monkeypatch):
    """118,000 images would take minutes on a network's file system."""
    root = write_dataset(tmp_path / "data", train=30, val=IMAGES)
    (root / "train" / "29.png").rename(root / "29.png")
    (root / "train" / "29.png").symlink_to("../29.png")
    looked = []
    monkeypatch.setattr(locate.os.path, "realpath", spy(os.path.realpath, looked))
    monkeypatch.setattr(store.os, "scandir", spy(os.scandir, looked))
    load_split(at(root), "train")
    assert (
        len(looked) == 7
    )  # the root, its annotations and its images are listed; of two roots, the folder and the link one asks


def spy(function, calls):
    def spied(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return spied


def test_a_large_picture_is_read_where_its_annotations_announce_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE", 1000)
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "aerial.png")
    for size in (None, (80, 60)):
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "aerial.png", size=size)), noise)
    with pytest.raises(SizeError, match="the image is 80 x 60, its annotations say 80 x 61; correct"):
        read_image(tmp_path / "aerial.png", size=(80, 61))
    monkeypatch.setattr(images, "LARGEST", 4799)
    with pytest.raises(UserError, match="80 x 60, which is too large to be read at once; cut it"):
        read_image(tmp_path / "aerial.png")


def test_the_crop_makes_no_giant_of_a_row_of_pixels(monkeypatch):
    """DETR enlarges the shorter side to 400 and more, which would make gigabytes of this picture."""
    made = []
    monkeypatch.setattr(augment.F, "resize", spy(augment.F.resize, made))
    row, boxes, labels = Image.new("RGB", (2000, 1)), torch.tensor([[0.5, 0.5, 1.0, 1.0]]), torch.tensor([0])
    for seed in range(8):
        view, _, _ = augment.training_view(row, boxes, labels, DataConfig(), torch.Generator().manual_seed(seed))
        assert max(view.shape) <= 1333
    assert 1333 < max(max(size) for _, size in made) < 20_000


def test_pillow_s_own_limit_of_pixels_is_not_met(tmp_path):
    """An honest picture beyond the size from which Pillow warns, on reading and again on cropping."""
    Image.new("L", (9600, 9400)).save(tmp_path / "aerial.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_image(tmp_path / "aerial.jpg")
        assert picture.crop((1, 0, *picture.size)).size == (9599, 9400)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dndetr", *arguments], cwd=cwd, capture_output=True, text=True, timeout=HANGS,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments, kind, code",
    [
        ("data check data", "picture_is_a_pipe", 1),
        ("train --preset tiny.yaml --out new data.root=data data.workers=1", "bomb", 2),
        ("eval --ckpt run data.root=data", "link_out_of_the_root", 2),
        ("predict --ckpt run --out new data/train/1.jpg", "web_page_named_jpg", 2),
    ],
)
def test_the_command_line_says_it_in_a_line(tmp_path, run, arguments, kind, code):
    write_broken(tmp_path / "data", by_name[kind])
    (tmp_path / "run").symlink_to(run)
    settings = resolved(tiny_config(tmp_path / "data", epochs=1))
    (tmp_path / "tiny.yaml").write_text(to_yaml(replace(settings, sources=dict.fromkeys(leaves(settings.tree), "test"))))
    done = command(*arguments.split(), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    said = (done.stdout if code == 1 else done.stderr).splitlines()
    words = [word for word in by_name[kind].words if word != IMAGE]
    assert [line for line in said if all(word in line for word in words)]
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    if code == 2:
        assert len(said) == (2 if kind.startswith("link") else 1)  # and how to see all defects
