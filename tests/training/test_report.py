"""What is said of a training: whole lines, as the user reads them."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dndetr.config import EvalConfig
from dndetr.data.coco import load_split
from dndetr.fonts import best_font
from dndetr.models import native
from dndetr.models.hosts.dab_detr import DabDetrConfig
from dndetr.training.evaluate import METRICS
from dndetr.training.prepare import build_model, load_data
from dndetr.training.report import COCO_ROWS, Report, Waiting, coco_table, ending, epoch_line, memory, plan, uncounted
from tests.data import coco_files as files
from tests.data.coco_files import at, write_split
from tests.training.tiny import tiny_config, with_train, write_dataset

CPU = torch.device("cpu")
RECORD = {"epoch": 3, "seconds": 41.4, "loss": 9.4149, "dn_loss": 3.05, "ap": 0.3121, "ap50": 0.5, "instability": 3.416}


def test_an_epoch_is_a_line():
    assert epoch_line(RECORD, 12) == "epoch 3/12  loss 9.415  dn 3.050  AP 0.312  AP50 0.500  IS 3.42  41 s"


def test_an_epoch_tells_only_what_was_measured():
    unknown = {"dn_loss": None, "ap": None, "ap50": None, "instability": None}
    assert epoch_line(RECORD | unknown, 12) == "epoch 3/12  loss 9.415  41 s"
    assert epoch_line({"epoch": 1, "loss": 2.0, "seconds": 0.2}, 1) == "epoch 1/1  loss 2.000  0 s"


def test_a_measured_zero_is_told():
    zeros = {"dn_loss": 0.0, "ap": 0.0, "ap50": 0.0, "instability": 0.0}
    assert epoch_line(RECORD | zeros, 12) == "epoch 3/12  loss 9.415  dn 0.000  AP 0.000  AP50 0.000  IS 0.00  41 s"


def test_the_coco_table_has_all_numbers_and_dashes_for_none():
    numbers = {name: i / 100 for i, name in enumerate(METRICS)}
    assert tuple(key for key, _, _ in COCO_ROWS) == METRICS
    lines = coco_table("best epoch", numbers | {"ap_s": None}).splitlines()
    assert lines[:5] == [
        "best epoch",
        "  AP         0.000  IoU 0.50:0.95",
        "  AP50       0.010  IoU 0.50",
        "  AP75       0.020  IoU 0.75",
        "  AP small       -  area below 32 x 32",
    ]
    assert len(lines) == 13 and lines[-1] == "  AR large   0.110"


def test_several_evaluations_stand_side_by_side():
    one, other = ({name: (i + k) / 100 for i, name in enumerate(METRICS)} for k in (0, 50))
    lines = coco_table("two ways", one, other | {"ap50": None}).splitlines()
    assert lines[:4] == [
        "two ways",
        "                 1      2",
        "  AP         0.000  0.500  IoU 0.50:0.95",
        "  AP50       0.010      -  IoU 0.50",
    ]
    assert len(lines) == 14


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def header(config) -> dict[str, str]:
    """The rows of the header by their names."""
    data = load_data(config)
    model = build_model(config, data.categories, CPU)
    title, *lines = plan(config, data, model, "random", CPU, Path("runs/x")).splitlines()
    assert title == "dndetr train: deformable_detr"
    return {line[2:21].strip(): line[21:] for line in lines}


def test_the_header_says_what_is_about_to_happen(root):
    assert header(replace(tiny_config(root), op="torch")) == {
        "device": "cpu, fp32",
        "batch": "4 images a step, 2 steps an epoch",
        "data": f"{root}, the plain COCO layout: annotations/instances_train.json and annotations/instances_val.json",
        "classes": "3: red, green, blue",
        "training images": "7 with objects, 3 without",
        "validation images": "4 with objects, 2 without",
        "objects": "at most 3 an image, 9 queries",
        "denoising": "2 groups, at most 6 denoising queries an image",
        "sampling": "PyTorch's grid_sample",
        "parameters": "0.30 M",
        "weights": "random",
        "run folder": "runs/x",
    }


def test_the_header_tells_the_native_operator_where_it_is_used(root, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda device: None)
    assert header(tiny_config(root))["sampling"] == "native operator"
    dense = replace(tiny_config(root), host=DabDetrConfig(hidden=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1))
    data = load_data(dense)
    assert "sampling" not in plan(dense, data, build_model(dense, data.categories, CPU), "random", CPU, Path("runs/x"))


def test_the_epoch_line_tells_of_waiting_for_data_where_it_costs_something():
    assert "waited" not in epoch_line(RECORD | {"data_wait": 0.049}, 12)
    assert epoch_line(RECORD | {"data_wait": 0.25}, 12).endswith("  waited for data 25%  41 s")


def test_the_header_tells_of_parts_and_precision(root):
    rows = header(tiny_config(root, accumulate=2, precision="bf16"))
    assert rows["device"] == "cpu, bf16"
    assert rows["batch"] == "4 images a step = 2 x 2 accumulated, 2 steps an epoch"


def test_the_header_tells_of_several_processes(root, monkeypatch):
    config = tiny_config(root)
    data = load_data(config)
    model = build_model(config, data.categories, CPU)
    monkeypatch.setattr("dndetr.training.distributed.world", lambda: 2)
    lines = plan(config, data, model, "random", CPU, Path("runs/x")).splitlines()
    assert lines[1] == "  device             cpu, fp32, 2 processes"
    assert lines[2] == "  batch              4 images a step = 2 x 2 processes, 2 steps an epoch"
    both = with_train(config, accumulate=2)
    assert "4 images a step = 1 x 2 accumulated x 2 processes," in plan(both, data, model, "random", CPU, Path("runs/x"))


def test_the_header_tells_the_batch_that_a_small_dataset_allows(root):
    assert header(tiny_config(root, batch_size=64))["batch"] == "10 images a step, 1 step an epoch"


def test_the_header_warns_of_more_objects_than_queries(root):
    config = tiny_config(root)
    few, enough = (replace(config, host=replace(config.host, queries=n)) for n in (2, 3))
    assert header(few)["objects"] == (
        "at most 3 an image, 2 queries - WARNING: the objects beyond the queries can never be found; raise host.queries"
    )
    assert header(enough)["objects"] == "at most 3 an image, 3 queries"


def test_patterns_use_every_anchor_again(root):
    config = tiny_config(root)
    host = replace(config.host, decoder="dense", queries=2, patterns=3)
    assert header(replace(config, host=host))["objects"] == "at most 3 an image, 6 queries"


def test_the_header_warns_of_images_with_more_objects_than_are_denoised(root):
    config = tiny_config(root)
    tight, enough = (replace(config, noise=replace(config.noise, max_queries=n)) for n in (5, 6))
    assert header(tight)["denoising"] == (
        "2 groups, at most 4 denoising queries an image - WARNING: of up to 3 objects in an image only 2, drawn anew each "
        "epoch, are denoised; noise.max_queries=6 denoises all, with more memory"
    )
    assert header(enough)["denoising"] == "2 groups, at most 6 denoising queries an image"
    with_negatives = replace(config, noise=replace(config.noise, contrastive=True))
    assert header(with_negatives)["denoising"] == "2 groups, at most 12 denoising queries an image"


def test_a_baseline_has_no_denoising(root):
    assert header(replace(tiny_config(root), noise=None))["denoising"] == "none"


def numbers(epoch: int, ap: float | None) -> dict:
    return {"epoch": epoch, "ap": ap} | {name: ap for name in METRICS}


def test_the_ending_shows_the_best_epoch_and_what_comes_next():
    text = ending([numbers(1, None), numbers(2, 0.4), numbers(3, 0.3)], Path("runs/x"))
    lines = text.splitlines()
    assert lines[:2] == ["best epoch, 2 of 3: checkpoints/best.pt", "  AP         0.400  IoU 0.50:0.95"]
    assert lines[13:] == [
        "pictures: runs/x/predictions",
        "curves:   runs/x/plots",
        "numbers:  runs/x/metrics.csv",
        "next:     dndetr eval --ckpt runs/x",
        "          dndetr predict --ckpt runs/x IMAGE --out pictures",
    ]


def test_objects_beyond_those_that_are_counted_are_told(tmp_path):
    boxes = [files.item(i, 1, [i % 35, 2, 4, 4]) for i in range(12)] + [files.item(99, 1, [0, 0, 9, 9], category=7)]
    for split in ("train", "val"):
        write_split(tmp_path, split, [files.image(1)], boxes)
    split = load_split(at(tmp_path), "val")
    assert split.most_of_a_class == 12 and uncounted(split, 12) == []
    (told,) = uncounted(split, 11)
    assert told.startswith("up to 12 objects of a class in a validation image, of which 11 are counted: AP cannot reach 1; ")
    config = tiny_config(tmp_path, batch_size=1)
    assert "AP cannot reach 1" in " ".join(header(replace(config, eval=EvalConfig(top=20, detections=11))).values())


def test_the_table_says_how_many_detections_are_counted():
    lines = coco_table("x", dict.fromkeys(METRICS, 0.5), most=300).splitlines()
    assert lines[1] == "  counted: 300 detections of a class in an image (eval.detections); COCO counts 100"
    assert "  AR 300     0.500  at most 300" in lines


def test_of_equal_epochs_the_last_is_the_best():
    assert ending([numbers(1, 0.2), numbers(2, 0.2)], Path("x")).startswith("best epoch, 2 of 2:")


def test_the_header_tells_a_warm_up_that_the_training_is_too_short_for(root):
    assert header(tiny_config(root, epochs=10, warmup_steps=3))["warm-up"] == (
        "2 of 20 steps, not the 3 of train.warmup_steps: at most a tenth"
    )
    assert "warm-up" not in header(tiny_config(root, epochs=10, warmup_steps=2))


def test_an_ending_without_any_evaluation_still_names_what_comes_next():
    assert ending([numbers(1, None)], Path("x")).splitlines()[0] == "pictures: x/predictions"


def test_memory_is_that_of_this_process():
    amount, unit = memory(CPU).split()
    assert unit == "GiB" and 0.1 <= float(amount) < 100


def test_what_is_said_is_shown_and_logged_as_it_is(tmp_path, capsys):
    report = Report(tmp_path / "train.log")
    report.say("[bold]epoch[/bold] 1 " + "x" * 200)
    report.say("two\nlines")
    assert capsys.readouterr().out == (tmp_path / "train.log").read_text() == f"[bold]epoch[/bold] 1 {'x' * 200}\ntwo\nlines\n"


def test_only_the_main_process_speaks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dndetr.training.distributed.rank", lambda: 1)
    Report(tmp_path / "train.log").say("hello")
    assert capsys.readouterr().out == "" and not (tmp_path / "train.log").exists()


def test_a_bar_passes_everything_on_and_is_silent_in_a_pipe(capsys):
    assert list(Report().track(["a", "b"], "reading")) == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_waiting_counts_only_the_time_of_the_source():
    def slow():
        for item in (1, 2):
            time.sleep(0.05)
            yield item

    waiting = Waiting(slow())
    for _ in waiting:
        time.sleep(0.2)
    assert 0.1 <= waiting.seconds < 0.4


def test_the_header_tells_of_pictures_and_names_that_may_not_be_seen_as_people_see_them(tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    best_font.cache_clear()
    root = write_dataset(tmp_path)
    for file in (root / "annotations").iterdir():
        file.write_text(file.read_text().replace('"blue"', '"猫"'))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(root / "train" / "0.png").save(root / "train" / "0.png", exif=exif)
    Image.fromarray(np.full((32, 40), 7, np.uint16)).save(root / "train" / "1.png")
    config = tiny_config(root)
    data = load_data(config)
    model = build_model(config, data.categories, CPU)
    lines = plan(config, data, model, "random", CPU, Path("runs/x")).splitlines()
    best_font.cache_clear()
    assert lines[4:6] == [
        "  classes            3: red, green, 猫",
        f"{'':21}" + r"no font here has 猫: such characters are drawn as escapes (\u732b); "
        "install a font for them, for instance Noto Sans CJK",
    ]
    pictures = [line[21:] for line in lines if line.startswith(("  pictures ", " " * 21))][1:]
    assert lines[8].startswith("  pictures           EXIF rotation in 1 of 10 images, applied: boxes are taken to be of")
    assert pictures[1].startswith("not of 8 bits (16-bit): 1 of 10 images; integers are seen from 0 to 65535, floats")
    assert pictures[2].startswith("WARNING: the detector sees fewer than 16 grey levels in 1 of 1 images looked at;")
    assert len(pictures) == 3
