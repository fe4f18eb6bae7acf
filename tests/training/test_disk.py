"""Disks that are full or read-only: found before the first epoch, or else the last good checkpoint stays."""

import os
import resource
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dndetr.training.epochs as epochs
from dndetr.config import Config
from dndetr.console import UserError
from dndetr.plots import plot_run
from dndetr.settings import dump
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.learner import Learner
from dndetr.training.loop import train
from tests.training.faults import differences
from tests.training.processes import command, run
from tests.training.tiny import resolved, tiny_config, to_tree, with_train, write_dataset

MIB = 2**20


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(write_dataset(tmp_path_factory.mktemp("data")), epochs=3, ema=0.5)


@pytest.fixture(scope="module", autouse=True)
def quick_plots():
    """Curves of random bytes: drawing them takes most of the time of so small a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "plot_run", lambda records, folder: (folder / "curves.png").write_bytes(os.urandom(2**16)))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config, quick_plots):
    """The run that nothing happens to."""
    return train(resolved(config), tmp_path_factory.mktemp("runs") / "whole")


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes; skips where only an administrator may mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path / "disk", 64 * MIB) as folder:
        yield folder


def read_only(folder: Path, yes: bool = True) -> None:
    subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", folder], check=True)


def fill(folder: Path, left: int = 0) -> Path:
    """Take all room of the disk but `left` bytes."""
    filler = folder / "somebody-elses"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - left
    with open(filler, "wb", buffering=0) as file:
        while free > 0:
            free -= file.write(bytes(min(MIB, free)))
    return filler


@pytest.fixture
def before_step(monkeypatch) -> Callable[[int, Callable[[], object]], None]:
    """`before_step(n, action)` has something happen before step n."""
    original = Learner.step

    def install(number, action):
        def step(self, parts, task):
            if self.step_count + 1 == number:
                action()
            return original(self, parts, task)

        monkeypatch.setattr(Learner, "step", step)

    yield install
    monkeypatch.setattr(Learner, "step", original)


def partial_files(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if "partial" in file.name or "probe" in file.name]


# before the first epoch


def test_a_disk_that_is_too_small_is_refused_before_the_first_epoch(config, tmp_path, before_step):
    before_step(1, lambda: pytest.fail("trained"))
    with mounted(tmp_path / "disk", 4 * MIB) as disk:
        with pytest.raises(
            UserError, match=r"cannot hold the run's checkpoints \((\d+) MiB\): No space left on device"
        ) as error:
            train(resolved(config), disk / "run")
        assert len(error.value.lines) == 1
        assert list(disk.iterdir()) == []
        needed = int(str(error.value).partition("(")[2].partition(" ")[0])
    assert 4 < needed < 64


def test_the_room_that_is_asked_for_is_enough(config, whole, tmp_path):
    """The run that just fits by its own account ends, and goes on after it was stopped."""
    with mounted(tmp_path / "disk", 4 * MIB) as disk, pytest.raises(UserError) as error:
        train(resolved(config), disk / "run")
    needed = int(str(error.value).partition("(")[2].partition(" ")[0]) + 1
    with mounted(tmp_path / "second", needed * MIB + MIB) as disk:  # pictures and plots take some, too
        train(resolved(with_train(config, epochs=2, drop_epoch=1)), disk / "run")
        train(resolved(config), None, resume=disk / "run")
        assert differences(disk / "run", whole, but=("train.epochs",)) == []


def test_a_read_only_disk_is_refused_before_the_first_epoch(config, disk, before_step):
    before_step(1, lambda: pytest.fail("trained"))
    read_only(disk)
    with pytest.raises(UserError, match="cannot hold the run's checkpoints .*: Read-only file system; make room or choose"):
        train(resolved(config), disk / "run")


def test_an_old_run_stays_where_there_is_no_room_for_the_new_one(config, disk):
    one = with_train(config, epochs=1)
    train(resolved(one), disk / "run")
    before = {file: file.read_bytes() for file in disk.rglob("*") if file.is_file()}
    filler = fill(disk)
    for arguments in ({"out": disk / "run", "overwrite": True}, {"out": None, "resume": disk / "run"}):
        with pytest.raises(UserError, match="cannot hold the run's checkpoints") as error:
            train(resolved(with_train(config, epochs=2, drop_epoch=1)), **arguments)
        assert len(error.value.lines) == 1
    filler.unlink()
    assert before == {file: file.read_bytes() for file in disk.rglob("*") if file.is_file()}


# later


def test_a_disk_that_fills_up_leaves_the_last_good_checkpoint(config, whole, disk, before_step):
    before_step(3, lambda: fill(disk))
    with pytest.raises(UserError) as error:
        train(resolved(config), disk / "run")
    before_step(0, None)
    assert error.value.code == 2
    resumable(error.value, disk, whole, config)


FAILS = {
    "save_matches": (2, 0),
    "replace_text": (2, 4),
    "draw_samples": (1, 40),
    "plot_run": (1, 450),
    "save_checkpoint": (2, 400),
}


@pytest.mark.parametrize("place", FAILS)
def test_whatever_does_not_fit_first_the_run_can_be_resumed(config, whole, disk, monkeypatch, place):
    """Matches, detections, pictures, curves or the best checkpoint, when so many KiB are left for what an epoch leaves."""
    (epoch, left), evaluate, evaluations = FAILS[place], epochs.evaluate, []

    def full_now(*args, **kwargs):
        evaluations.append(evaluate(*args, **kwargs))
        if len(evaluations) == epoch:
            fill(disk, left * 1024)
        return evaluations[-1]

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "evaluate", full_now)
        patch.setattr(epochs, "plot_run", plot_run)
        with pytest.raises(UserError) as error:
            train(resolved(config), disk / "run")
    assert place in [frame.name for frame in traceback.extract_tb(error.value.__cause__.__traceback__)]
    resumable(error.value, disk, whole, config)


def resumable(error: UserError, disk: Path, whole: Path, config: Config) -> None:
    """One sentence, the checkpoint of an earlier step, and once there is room a run that ends as if nothing had been."""
    sentence = "cannot be written: No space left on device; make room, then go on with: dndetr train --resume"
    assert len(error.lines) == 1 and sentence in str(error)
    assert partial_files(disk) == []
    last = load_checkpoint(disk / "run" / "checkpoints" / "last.pt")
    assert (last.epoch, last.step) in {(0, 2), (1, 2), (1, 4)}
    (disk / "somebody-elses").unlink()
    train(resolved(config), None, resume=disk / "run")
    assert differences(disk / "run", whole) == []


def test_a_disk_that_becomes_read_only_leaves_the_last_good_checkpoint(config, whole, disk, before_step):
    before_step(4, lambda: read_only(disk))
    with pytest.raises(UserError, match="run: cannot be written: Read-only file system; make room, then") as error:
        train(resolved(config), disk / "run")
    before_step(0, None)
    assert len(error.value.lines) == 1
    assert load_checkpoint(disk / "run" / "checkpoints" / "last.pt").epoch == 1
    with pytest.raises(UserError, match="Read-only file system"):
        train(resolved(config), None, resume=disk / "run")
    read_only(disk, False)
    train(resolved(config), None, resume=disk / "run")
    assert differences(disk / "run", whole) == []


def limited(size: int, at_step: int, *arguments) -> None:
    """The command, in which no file becomes larger than `size` from a step on: as a full disk, but without one."""
    original = Learner.step

    def step(self, parts, task):
        if self.step_count + 1 == at_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return original(self, parts, task)

    if at_step == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    Learner.step = step
    command(*arguments)


@pytest.mark.parametrize("world", [1, 2])
def test_the_command_ends_with_one_sentence(config, tmp_path, world):
    """Where files may not grow, which needs no administrator. In two processes the other one says what it knows."""
    (tmp_path / "tiny.yaml").write_text(dump(to_tree(config)))
    arguments = ("train", "--preset", tmp_path / "tiny.yaml", "--out")
    first, *_ = run(tmp_path, world, limited, MIB, 0, *arguments, tmp_path / "never", first_ends_all=True)
    assert (first.code, first.err.count("\n"), first.out) == (2, 1, "")
    assert "cannot hold the run's checkpoints" in first.err and "MiB): File too large" in first.err
    assert not (tmp_path / "never").exists()
    first, *others = run(tmp_path, world, limited, 500 * 1024, 3, *arguments, tmp_path / "run")
    assert (first.code, first.err.count("\n")) == (2, 1), first.err
    assert "cannot be written: File too large; make room, then go on with: dndetr train --resume" in first.err
    assert [each.code for each in others] == [2] * (world - 1)
    assert all("another process has died" in each.err for each in others)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt").epoch == 1
    assert partial_files(tmp_path) == []
