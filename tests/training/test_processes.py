"""Whole trainings and evaluations in several processes, and what is left of them when one process fails."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import dndetr.training.epochs as epochs
import dndetr.training.learner as learning
import dndetr.training.loop as loop
from dndetr.data.coco import load_split
from dndetr.data.loader import TrainPlan
from dndetr.settings import dump
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.commands import evaluate_command
from dndetr.training.evaluate import METRICS
from dndetr.training.learner import Learner
from tests.data.coco_files import at
from tests.training.faults import records
from tests.training.processes import GUARD, TORCHRUN, command, run
from tests.training.tiny import frozen_statistics, tiny_config, to_tree, write_dataset

ROOT = Path(__file__).resolve().parents[2]
ANOTHER = "another process has died or did not answer within"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), val=3)  # with 4 processes one of them has no image to evaluate


def preset(folder: Path, root: Path, **train) -> Path:
    (folder / "tiny.yaml").write_text(dump(to_tree(tiny_config(root, **train))))
    return folder / "tiny.yaml"


def measured(run_folder: Path) -> list[dict[str, float]]:
    """The metrics of a run; what could not be measured is -1."""
    return [{name: -1 if value is None else value for name, value in line.items()} for line in records(run_folder)]


# as many processes as there are


def comparable(*arguments) -> None:
    """The command, but that batch norm does not see the images of a process together, and Adam divides no rounding."""
    build_model, build_optimizer = loop.build_model, learning.build_optimizer

    def steady(*args):
        optimizer = build_optimizer(*args)
        for group in optimizer.param_groups:
            group["eps"] = 1e-3
        return optimizer

    epochs.plot_run = lambda *args: None  # drawing takes most of the time of so small a run
    loop.build_model = lambda *args: frozen_statistics(build_model(*args))
    learning.build_optimizer = steady
    command(*arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, root):
    """The same training in 1, 2 and 4 processes: 10 images in batches of 4, of which 2 wait for another epoch."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = ["--preset", preset(folder, root, ema=0.5), "data.sizes=[32]"]  # one size: no padding, which convolutions see
    for world in (1, 2, 4):
        ended = run(folder, world, comparable, "train", *arguments, "--out", folder / str(world))
        assert [(each.code, each.err) for each in ended] == [(0, "")] * world
        assert [bool(each.out) for each in ended] == [True] + [False] * (world - 1)
    return folder


@pytest.mark.parametrize("world", [2, 4])
def test_a_run_of_several_processes_is_the_run_of_one(runs, world):
    alone, together = load_checkpoint(runs / "1/checkpoints/last.pt"), load_checkpoint(runs / f"{world}/checkpoints/last.pt")
    for part in ("model", "ema"):
        torch.testing.assert_close(getattr(together, part), getattr(alone, part), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(measured(runs / str(world)), measured(runs / "1"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_every_image_is_evaluated_once_by_more_processes_than_images(runs):
    for world in (1, 2, 4):
        found = json.loads((runs / str(world) / "eval" / "detections.json").read_text())
        assert len(found) == 3 * 20  # eval.top of each
        assert len({(d["image_id"], d["category_id"], tuple(d["bbox"]), d["score"]) for d in found}) == len(found)


@pytest.mark.parametrize("world", [2, 4])
def test_eval_in_several_processes_is_that_of_one(runs, tmp_path, world):
    """In the training images, of which each process has an uneven number of batches."""
    root = tmp_path / "data"
    write_dataset(root, train=1, val=11)
    arguments = ["data.workers=0", f"data.root={root}", "eval.batch_size=2"]
    expected = evaluate_command(runs / "1", arguments)
    ended = run(tmp_path, world, command, "eval", "--ckpt", runs / "1", "--json", tmp_path / "found.json", *arguments)
    assert [(each.code, each.err) for each in ended] == [(0, "")] * world
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == 11
    assert [found[name] for name in METRICS] == [expected[name] for name in METRICS]
    assert [bool(each.out) for each in ended] == [True] + [False] * (world - 1)


# one process that fails


def ill(rank: int, do: str, *arguments) -> None:
    """The command, whose process `rank` meets its end in the second step."""
    original = Learner.step

    def step(self, parts, task):
        if self.step_count == 1 and os.environ["RANK"] == str(rank):
            if do == "die":
                os._exit(1)
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(self, parts, task)

    Learner.step = step
    command(*arguments)


@pytest.mark.parametrize(
    ("world", "rank", "do", "timeout"),
    [
        (2, 0, "die", 1800),
        (2, 1, "die", 1800),
        (4, 2, "die", 1800),
        (2, 0, "freeze", 3),
        (2, 1, "freeze", 3),
        (4, 2, "freeze", 3),
    ],
)
def test_when_a_process_dies_or_is_silent_the_others_end_and_say_so(tmp_path, root, world, rank, do, timeout):
    settings = preset(tmp_path, root, timeout=timeout, save_steps=1)
    arguments = ("train", "--preset", settings, "--out", tmp_path / "run")
    ended = run(tmp_path, world, ill, rank, do, *arguments, frozen=rank if do == "freeze" else -1)
    del ended[rank]
    for each in ended:
        assert (each.code, each.err.count("\n")) == (2, 1), each.err
        assert f"{ANOTHER} {timeout} s" in each.err
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt").step == 1


def test_a_process_that_never_comes_is_missed(tmp_path, root):
    settings = preset(tmp_path, root, timeout=2)
    for rank in (0, 1):
        (alone,) = run(tmp_path, 2, command, "train", "--preset", settings, "--out", tmp_path / "run", ranks=[rank])
        assert alone.code == 2, alone.err
        sentence = alone.err.splitlines()[-1]  # before it PyTorch's socket may have its own say
        assert f"process {rank} of 2: {ANOTHER} 2 s" in sentence
    assert not (tmp_path / "run").exists()


def first_images(root: Path, split: str, world: int, rank: int) -> list[Path]:
    """What process `rank` reads first of a split."""
    images = load_split(at(root), split).images
    if split == "val":
        return [images[rank].path]
    (keys, *_) = TrainPlan(len(images), 4, 1, rank, world, seed=0)
    return [images[index].path for _, index in keys]


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_only_one_process_cannot_read_is_named(tmp_path, split):
    root = write_dataset(tmp_path / "data")
    spoilt = first_images(root, split, world=2, rank=1)[0]
    spoilt.write_bytes(spoilt.read_bytes()[:60])
    arguments = ("train", "--preset", preset(tmp_path, root), "--out", tmp_path / "run")
    first, second = run(tmp_path, 2, command, *arguments, first_ends_all=True)
    assert first.code == 2
    assert ANOTHER in first.err and first.err.count("\n") == 1
    assert str(spoilt) in second.err and second.err.count("\n") == 1


def nowhere(folder: Path, root: Path) -> list[str]:
    return ["--preset", preset(folder, folder / "nowhere"), "--out", folder / "run"]


def uneven(folder: Path, root: Path) -> list[str]:
    return ["--preset", preset(folder, root), "--out", folder / "run", "train.batch_size=3"]


def occupied(folder: Path, root: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "letter.txt").write_text("dear")
    return ["--preset", preset(folder, root), "--out", folder / "run"]


def on_a_file(folder: Path, root: Path) -> list[str]:
    """Found by the process that writes."""
    (folder / "file").write_text("x")
    return ["--preset", preset(folder, root), "--out", folder / "file" / "run"]


@pytest.mark.parametrize("mistake", [nowhere, uneven, occupied, on_a_file])
def test_a_mistake_that_all_processes_find_is_told_once(tmp_path, root, mistake):
    first, second = run(tmp_path, 2, command, "train", *mistake(tmp_path, root), first_ends_all=True)
    assert first.code == 2
    assert first.err.count("\n") == 1 and second.err == ""
    assert not (tmp_path / "run" / "config.yaml").exists()


SLOW = """
import os, time
if os.environ.get("LOCAL_RANK") == "0":
    time.sleep(2)
"""


def test_torchrun_lets_the_first_process_tell_what_is_wrong(tmp_path):
    """It ends all processes when one has failed, also one that has not come to speak yet."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    found = torchrun("train", "--preset", "no-such-preset", cwd=tmp_path)
    assert found.stderr.count("no-such-preset") == 1, found.stderr
    assert found.returncode != 0


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """`dndetr ...` in two processes under torchrun, as the README has it."""
    start = [*TORCHRUN, "-m", "dndetr"]
    variables = {**os.environ, "PYTHONPATH": f"{cwd}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=GUARD)
