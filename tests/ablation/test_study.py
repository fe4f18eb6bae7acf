"""What is done is not done again, what is begun is gone on with, and what does not fit is refused before anything starts."""

import os
import signal
from pathlib import Path

import pytest

from dndetr.ablation import study as running
from dndetr.ablation.estimate import estimate
from dndetr.ablation.plan import read_study
from dndetr.ablation.runs import check_folders, plan_trials
from dndetr.console import UserError
from tests.ablation.studies import fake, write_preset, write_study
from tests.training.tiny import write_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def trials(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_preset(tmp_path)
    return lambda *overrides: plan_trials(read_study(write_study(tmp_path)), "tiny.yaml", overrides, [0], Path("out"))


def test_a_run_is_finished_when_its_last_epoch_is_recorded_and_saved(trials):
    first, second = trials()
    assert (first.begun, first.finished, first.records()) == (False, False, [])
    fake(first, [0.1])
    assert (first.begun, first.finished) == (True, False)
    fake(second, [0.1, 0.2])
    assert second.finished


def test_a_run_whose_last_checkpoint_is_older_than_its_record_is_looked_into(trials, monkeypatch):
    first, _ = trials()
    fake(first, [0.1, 0.2])
    os.utime(first.folder / "checkpoints" / "last.pt", (1, 1))
    looked = []
    monkeypatch.setattr("dndetr.ablation.runs.load_checkpoint", lambda path, prefer: looked.append(prefer) or Epoch(1))
    assert not first.finished
    monkeypatch.setattr("dndetr.ablation.runs.load_checkpoint", lambda path, prefer: Epoch(2))
    assert first.finished and looked == ["last.pt"]


class Epoch:
    def __init__(self, epoch):
        self.epoch = epoch


def test_runs_with_other_settings_are_refused_with_all_differences(trials):
    for trial in trials():
        fake(trial, [0.1])
    check_folders(trials("data.workers=3"))  # changes no result
    with pytest.raises(UserError) as error:
        check_folders(trials("train.lr=0.5", "noise.groups=3", "train.epochs=9"))
    assert error.value.lines == (
        "out: there are runs with other settings than these; choose another folder with --out:",
        "  noise.groups: 1 there, 3 now (with-noise/seed-0)",
        "  train.epochs: 2 there, 9 now (with-noise/seed-0, none/seed-0)",
        "  train.lr: 0.001 there, 0.5 now (with-noise/seed-0, none/seed-0)",
    )


def test_a_range_that_a_run_has_found_in_its_images_is_no_other_setting(trials):
    for trial in trials("data.range=0,4095"):
        fake(trial, [0.1])
    check_folders(trials())
    with pytest.raises(UserError, match="data.range: '0,4095' there, '0,255' now"):
        check_folders(trials("data.range=0,255"))


def test_a_folder_that_holds_something_else_is_refused(trials):
    first, _ = trials()
    first.folder.mkdir(parents=True)
    (first.folder / "thesis.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        check_folders(trials())


def test_two_studies_cannot_work_in_one_folder(tmp_path):
    again = pytest.raises(UserError, match="another study")
    with running.locked(tmp_path / "out"), again, running.locked(tmp_path / "out"):
        pass
    with running.locked(tmp_path / "out"):
        pass


def test_a_training_that_is_left_behind_keeps_the_folder(trials, monkeypatch):
    monkeypatch.setattr(running, "train_command", lambda trial: ["sleep", "60"])
    with running.locked(Path("out")) as lock:
        child = running.start(trials()[0], 0, 1, lock)
    with pytest.raises(UserError, match="left behind"), running.locked(Path("out")):
        pass
    child.process.kill()
    child.process.wait()
    with running.locked(Path("out")):
        child.end()


def test_the_time_is_estimated_from_the_epochs_that_are_done(trials):
    first, second = trials("train.epochs=12")
    fake(first, [0.1] * 8)  # of 30 seconds each; 4 + 12 are left, at the same price
    assert estimate([first, second], 1) == "time: about 8 min, from the epochs done so far"
    assert estimate([first, second], 2) == "time: about 4 min, from the epochs done so far"


def test_jobs_share_the_cores_and_the_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(running.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(running.torch.cuda, "device_count", lambda: 2)
    assert running.surroundings(0, 1) == {}
    assert running.surroundings(3, 4) == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert running.surroundings(3, 4) == {"CUDA_VISIBLE_DEVICES": "6"}


@pytest.fixture
def dndetr(main, tmp_path, monkeypatch):
    """`dndetr ablate mine.yaml ...` in this process, in a folder with a small dataset: (code, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_preset(tmp_path, write_dataset(tmp_path / "data", train=8, val=4), epochs=1)
    write_study(tmp_path)

    return lambda *arguments: main("ablate", "mine.yaml", *arguments)


def test_a_dry_run_writes_nothing(dndetr):
    done = dndetr("--dry-run", "--seeds", "2")
    assert (done.code, done.err) == (0, "")
    assert "4 runs in runs/ablate-mine-tiny: 0 finished, 0 to go on with; 4 epochs to train" in done.out
    assert "from some steps of with-noise, measured now" in done.out
    assert sorted(path.name for path in Path().iterdir()) == ["data", "mine.yaml", "tiny.yaml"]


def test_a_study_of_two_rows_is_trained_once(dndetr):
    first = dndetr("--seeds", "1", "--jobs", "2", "--out", "out")
    assert (first.code, first.err) == (0, "")
    assert "[2 of 2]" in first.out and "one seed" in first.out
    checkpoints = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.pt")}
    assert {path.parts[1] for path in checkpoints} == {"with-noise", "none"}
    assert {path.name for path in Path("out").glob("results.*")} == {"results.md", "results.csv", "results.png"}
    second = dndetr("--seeds", "1", "--out", "out")
    assert second.code == 0 and "2 finished, 0 to go on with; 0 epochs to train" in second.out
    assert checkpoints == {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.pt")}


def test_a_run_that_fails_is_named_with_its_last_lines_and_the_others_finish(dndetr, monkeypatch):
    def trained(trial):
        if trial.row.name == "none":
            return ["sh", "-c", "echo all is lost; exit 3"]
        fake(trial, [0.5])
        return ["true"]

    monkeypatch.setattr(running, "train_command", trained)
    done = dndetr("--seeds", "2", "--out", "out")
    assert done.code == 1
    lines = done.err.splitlines()
    assert lines[:2] == [
        "none/seed-0: the training failed with exit code 3; the end of out/none/seed-0.log:", "  all is lost",
    ]  # fmt: skip
    assert lines[2].startswith("none/seed-1:") and len(lines) == 4
    assert "with-noise/seed-1: AP 0.500" in done.out and "the same command trains what is left" in done.out


@pytest.fixture
def heard():
    """Ctrl-C is heard even where the tests run in the background (`sh -c 'make test &'`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_has_the_trainings_save_and_begins_no_more(dndetr, heard, monkeypatch):
    waiting = "trap 'echo saved; exit 143' TERM; kill -INT $PPID; for i in $(seq 500); do sleep 0.02; done"
    monkeypatch.setattr(running, "train_command", lambda trial: ["sh", "-c", waiting])
    done = dndetr("--seeds", "1", "--out", "out")
    assert done.code == 130
    assert "with-noise/seed-0: stopped after epoch 0 of 1" in done.out and "the same command" in done.out
    assert Path("out/with-noise/seed-0.log").read_text() == "saved\n"
    assert not Path("out/none").exists()


def test_what_is_begun_is_resumed_and_what_is_not_is_new(trials):
    first, second = trials()
    fake(first, [0.1])
    assert running.train_command(first)[3:] == ["train", "--preset", str(first.settings), "--resume", str(first.folder)]
    assert running.train_command(second)[3:] == ["train", "--preset", str(second.settings), "--out", str(second.folder)]
