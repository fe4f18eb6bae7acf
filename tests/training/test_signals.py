"""SIGTERM and Ctrl-C to real processes, and torchrun that starts a run again: they end as shells expect, and lose nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dndetr.console import UserError
from dndetr.resolve import to_tree
from dndetr.settings import dump
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.loop import train
from dndetr.training.resume import restarted
from tests.training.faults import ROOT, STEPS, differences, exacting, records
from tests.training.processes import TORCHRUN
from tests.training.tiny import resolved, with_train, write_dataset

PATIENCE = 300  # seconds, for a process that may hang
COMMAND = [sys.executable, "-m", "dndetr"]
STARTED: list[subprocess.Popen] = []

# The command `dndetr`, where step 2 waits: it writes `ready` and goes on when there is a file `go`.
WAITING = """
import pathlib, time
from dndetr.cli import main
from dndetr.training.learner import Learner

def step(self, *arguments, taken=Learner.step):
    if self.step_count == 1:
        here = pathlib.Path(__file__).parent
        (here / "ready").touch()
        while not (here / "go").exists():
            time.sleep(0.02)
    return taken(self, *arguments)

if __name__ == "__main__":
    Learner.step = step
    main()
"""

# The command `dndetr`, whose data workers wait like that for the images of the second epoch.
HUNGRY = """
import pathlib, time
from dndetr.cli import main
from dndetr.data.loader import DetectionDataset

def image(self, key, read=DetectionDataset.__getitem__):
    if self.train and key[0] == 2:
        here = pathlib.Path(__file__).parent
        (here / "ready").touch()
        while not (here / "go").exists():
            time.sleep(0.02)
    return read(self, key)

if __name__ == "__main__":
    DetectionDataset.__getitem__ = image
    main()
"""

# The command `dndetr`, where the second process dies once: in step 5, when step 4 is saved.
DYING = """
import os, pathlib, signal
from dndetr.cli import main
from dndetr.training.learner import Learner

def step(self, *arguments, taken=Learner.step):
    died = pathlib.Path(__file__).with_name("died")
    if self.step_count == 4 and os.environ["RANK"] == "1" and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return taken(self, *arguments)

if __name__ == "__main__":
    Learner.step = step
    main()
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return exacting(write_dataset(tmp_path_factory.mktemp("data") / "tiny", train=12, val=4))


@pytest.fixture
def preset(settings, tmp_path):
    """A file with these settings, for a training that does not end by itself."""
    file = tmp_path / "long.yaml"
    file.write_text(dump(to_tree(with_train(settings, epochs=10_000, save_steps=1))))
    return file


@pytest.fixture(autouse=True, scope="module")
def heard():
    """Processes hear Ctrl-C even where these tests run in the background (`sh -c 'make test &'`), and none outlives them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def start(command: list[str], folder: Path, **more) -> subprocess.Popen:
    """A process at the head of its own group; what it says is in `folder`/said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(folder / "said", "w") as said:
        where = {"stdout": said, "stderr": subprocess.STDOUT} | more
        STARTED.append(subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **where))
    return STARTED[-1]


def wait_for(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    for _ in range(20 * PATIENCE):
        if happened():
            return
        assert process.poll() is None, "the process ended too early"
        time.sleep(0.05)
    raise AssertionError("it never happened")


def script(tmp_path: Path, text: str = WAITING) -> list[str]:
    (tmp_path / "waiting.py").write_text(text)
    return [sys.executable, str(tmp_path / "waiting.py")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_saves_the_run(preset, tmp_path, number, code):
    run = tmp_path / "run"
    process = start([*COMMAND, "train", "--preset", str(preset), "--out", str(run), "data.workers=2"], tmp_path)
    wait_for(lambda: (run / "config.yaml").exists() and load_checkpoint(run, "last.pt").step > STEPS, process)
    os.killpg(process.pid, number)
    assert process.wait(PATIENCE) == code
    step, said = load_checkpoint(run, "last.pt").step, (tmp_path / "said").read_text()
    assert f"stopped after step {step}; go on with: dndetr train --resume {run}\n" in said
    assert "Traceback" not in said and "internal error" not in said
    assert len(records(run)) == load_checkpoint(run, "last.pt").epoch


def test_data_workers_are_there_for_the_step_that_is_finished(preset, tmp_path):
    """They belong to the group that receives the signal, and the training waits for their images."""
    run = tmp_path / "run"
    process = start(
        [*script(tmp_path, HUNGRY), "train", "--preset", str(preset), "--out", str(run), "data.workers=2"], tmp_path
    )
    wait_for((tmp_path / "ready").exists, process)
    os.killpg(process.pid, signal.SIGTERM)
    wait_for(lambda: "once more to quit at once" in (tmp_path / "said").read_text(), process)
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE) == 143, (tmp_path / "said").read_text()
    assert load_checkpoint(run, "last.pt").step == STEPS + 1


def test_a_signal_saves_the_run_also_where_nobody_reads_what_it_says(preset, tmp_path):
    """As in `dndetr train 2>&1 | tee log`, where Ctrl-C ends tee at once."""
    command = [*script(tmp_path), "train", "--preset", str(preset), "--out", str(tmp_path / "run")]
    process = start(command, tmp_path, stdout=subprocess.PIPE)
    wait_for((tmp_path / "ready").exists, process)
    process.stdout.close()
    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE) == 130
    assert load_checkpoint(tmp_path / "run", "last.pt").step == 2


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_quits_at_once(preset, tmp_path, second):
    """In the middle of a step that would never end; the checkpoint before it is there."""
    process = start([*script(tmp_path), "train", "--preset", str(preset), "--out", str(tmp_path / "run")], tmp_path)
    wait_for((tmp_path / "ready").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: "once more to quit at once" in (tmp_path / "said").read_text(), process)
    os.killpg(process.pid, second)
    assert process.wait(PATIENCE) == -second
    assert load_checkpoint(tmp_path / "run", "last.pt").step == 1


@pytest.fixture(scope="module")
def launches(settings, tmp_path_factory):
    """Two launches of two processes: one undisturbed, and one in which a process died and all were started again."""
    folder = tmp_path_factory.mktemp("launches")
    (folder / "dying.py").write_text(DYING)
    (folder / "short.yaml").write_text(dump(to_tree(settings)))
    script = ["--max-restarts", "3", str(folder / "dying.py")]
    launch = [*TORCHRUN, *script, "train", "--preset", str(folder / "short.yaml"), "--out"]
    process = start([*launch, str(folder / "restarted")], folder)
    assert process.wait(PATIENCE) == 0, (folder / "said").read_text()
    (folder / "said").rename(folder / "said.restarted")
    assert (folder / "died").exists()
    process = start([*launch, str(folder / "whole")], folder)  # nobody dies a second time
    assert process.wait(PATIENCE) == 0, (folder / "said").read_text()
    return folder


def test_torchrun_starts_a_run_again_where_a_process_died(launches):
    assert differences(launches / "restarted", launches / "whole") == []
    assert "of this run, after epoch 1 and step 4" in (launches / "restarted" / "train.log").read_text()
    assert "of this run" not in (launches / "whole" / "train.log").read_text()


def test_a_restart_does_not_go_on_with_the_run_of_another_launch(launches, settings, monkeypatch):
    mine = json.loads((launches / "whole" / "env.json").read_text())["launch"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", mine)
    assert not restarted(launches / "whole")  # the first start
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted(launches / "whole")
    assert not restarted(launches / "restarted")
    assert not restarted(launches / "nowhere")
    before = records(launches / "restarted")
    with pytest.raises(UserError, match="not empty"):
        train(resolved(with_train(settings, epochs=3)), launches / "restarted")
    assert records(launches / "restarted") == before
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun without a name of its own
    assert not restarted(launches / "whole")


def test_torchrun_that_is_told_to_stop_lets_its_processes_save(preset, tmp_path):
    run = tmp_path / "run"
    script(tmp_path)
    process = start([*TORCHRUN, str(tmp_path / "waiting.py"), "train", "--preset", str(preset), "--out", str(run)], tmp_path)
    wait_for((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "once more to quit at once" in (tmp_path / "said").read_text(), process)
    (tmp_path / "go").touch()
    assert process.wait(PATIENCE) != 0
    assert load_checkpoint(run, "last.pt").step == 2
    assert "stopped after step 2; go on with" in (run / "train.log").read_text()
