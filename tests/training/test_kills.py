"""Runs are killed at any moment, and refused any write: each goes on from a whole checkpoint to the same last bit.

The trainings are forked from a process that has imported everything, see `faults`. DNDETR_SOAK=500 asks for so many random
kills in place of 20.
"""

import os
import random
import re
import shutil
from pathlib import Path

import pytest

from dndetr.console import UserError
from dndetr.training.checkpoint import NAMES, load_checkpoint
from tests.training.faults import Fault, Trainings, differences, exacting, matches, records
from tests.training.tiny import with_train, write_dataset

KILLS = int(os.environ.get("DNDETR_SOAK", "20"))
SEED = 20  # of the random kills
MOST_EVENTS, MOST_WRITES = 160, 20_000  # of a run that is not disturbed


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    with Trainings(tmp_path_factory.mktemp("log")) as trainings:
        yield trainings


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return exacting(write_dataset(tmp_path_factory.mktemp("data") / "tiny", train=12, val=4))


@pytest.fixture(scope="module")
def whole(trainings, settings, tmp_path_factory):
    """A run that nothing disturbed, and its events."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    outcome = trainings(settings, run)
    assert outcome.code == 0, outcome.output
    return run, outcome.events


def test_a_run_goes_on_after_kills_at_random_moments(trainings, settings, whole, tmp_path):
    """Again and again in the same folder until the run is complete, then in the next one."""
    rng, kills, failures, completed, most_lost = random.Random(SEED), 0, 0, 0, 0
    run, saved, fault = tmp_path / "0", 0, None
    while kills < KILLS or saved:
        fault, after = random_fault(rng) if kills < KILLS else (None, None)
        outcome = go_on(trainings, settings, run, fault, after)
        complete = outcome.code == 0
        failed = "No space left on device" in outcome.output
        assert outcome.killed or complete or failed, outcome.output
        before, saved = saved, step_saved(run)
        if outcome.killed and kills % 50 == 0:
            print(f"{kills} kills", flush=True)
        done = max((int(e.split()[1]) for e in outcome.events if e.startswith("step ")), default=before)
        assert saved >= before, (fault, after)
        assert done - saved <= settings.train.save_steps, (fault, after)
        kills, failures = kills + outcome.killed, failures + failed
        most_lost = max(most_lost, done - saved)
        if complete:
            assert differences(run, whole[0]) == [], (fault, after)
            shutil.rmtree(run)
            completed += 1
            run, saved = tmp_path / str(completed), 0
    print(
        f"{kills} kills and {failures} failed writes in {completed} runs (seed {SEED}): every run ended with the same bits, "
    )
    print(f"no kill took more than {most_lost} steps")


def random_fault(rng: random.Random) -> tuple[Fault, float | None]:
    """Half of them hit a save for certain: they tear one of its writes, or slow it and come at a random time."""
    return rng.choice([
        (Fault("kill", "", rng.randint(1, MOST_EVENTS)), None),
        (Fault("full", "", rng.randint(1, MOST_EVENTS)), None),
        (Fault("torn", "write", rng.randint(1, MOST_WRITES)), None),
        (Fault("slow"), rng.uniform(0, 4)),
    ])  # fmt: skip


def go_on(trainings, settings, run: Path, fault=None, after=None):
    """What a user does next: resume where there is something to resume, else the same command again."""
    resume = {"resume": str(run)} if (run / "config.yaml").exists() else {}
    return trainings(settings, run, fault, after=after, **resume)


def step_saved(run: Path) -> int:
    """The step that the run would go on from; every checkpoint that is there must be whole."""
    if not (run / "config.yaml").exists():
        return 0
    for name in NAMES:
        if (run / "checkpoints" / name).exists():
            load_checkpoint(run / "checkpoints" / name)
    return load_checkpoint(run, prefer="last.pt").step


@pytest.mark.parametrize("how", ["kill", "full"])
def test_everything_that_is_done_to_a_file_may_be_the_last_or_fail(trainings, settings, whole, tmp_path, how):
    """From the making of the run to the end of an epoch, each kind of event once: all in the same folder."""
    run, saved = tmp_path / "run", 0
    for event in kinds(whole[1]):
        if how == "full" and event.startswith("link"):
            continue  # then it is a copy
        outcome = go_on(trainings, settings, run, Fault(how, event))
        assert outcome.code == (-9 if how == "kill" else 2), (event, outcome.output)
        assert how == "kill" or f"{run}: cannot be written: No space left on device" in outcome.output
        before, saved = saved, step_saved(run)
        assert saved >= before, event
    assert go_on(trainings, settings, run).code == 0
    assert differences(run, whole[0]) == []


def kinds(events: list[str]) -> list[str]:
    """Each kind of event of a run until the end of its first epoch, as it can be found again in another run."""
    first = events[: events.index("step 4")]
    files = [event for event in first if event.startswith(("open", "rename", "link", "mkdir")) and event != "open train.log"]
    return [*dict.fromkeys(re.sub(r"(plots|predictions)/.*", r"\1/", event) for event in files), "fsync", "write"]


def test_replacing_a_run_leaves_the_old_one_or_nothing_to_resume(trainings, settings, whole, tmp_path):
    """Never a run of which a part is gone."""
    overwrite = {"overwrite": True}
    for event in beginning(trainings, settings, copied(whole[0], tmp_path / "run"), overwrite):
        run = copied(whole[0], tmp_path / "run")
        assert trainings(settings, run, Fault("kill", event), **overwrite).killed, event
        if (run / "config.yaml").exists() and load_checkpoint(run, "last.pt").epoch:
            (run / ".dndetr-unfinished").unlink(missing_ok=True)  # as resuming does
            assert differences(run, whole[0]) == [], event
        elif not (run / "config.yaml").exists():
            assert (run / ".dndetr-unfinished").exists(), event  # the same command may use it, without --overwrite


@pytest.mark.parametrize("damaged", [False, True])
def test_going_on_from_the_checkpoint_before_may_be_killed_too(trainings, settings, whole, tmp_path, damaged):
    """The run never has fewer lines of metrics than epochs, and never two damaged checkpoints."""
    old = copied(whole[0], tmp_path / "old")
    if damaged:
        (old / "checkpoints" / "last.pt").write_bytes(b"\x80 torn")
    resume = {"resume": str(tmp_path / "run" / "checkpoints" / "previous.pt")}
    for event in beginning(trainings, settings, copied(old, tmp_path / "run"), resume):
        run = copied(old, tmp_path / "run")
        assert trainings(settings, run, Fault("kill", event), **resume).killed, event
        assert load_checkpoint(run / "checkpoints" / "previous.pt").epoch == 1, event
        try:
            known = load_checkpoint(run, "last.pt").epoch
        except UserError as error:
            assert damaged and "the last whole one is" in str(error), event
        else:
            assert records(run)[:known] == records(whole[0])[:known], event
            assert len(matches(run)) >= known, event
    assert go_on(trainings, settings, run).code == 0
    assert differences(run, whole[0]) == []


def test_a_run_with_changed_settings_may_be_killed_too(trainings, settings, whole, tmp_path):
    """Whether it has them then or not, a plain `dndetr train --resume` is not refused."""
    other = with_train(settings, epochs=3, lr=5e-4)
    change = {"resume": str(tmp_path / "run"), "allow_change": ["train.lr"]}
    for event in beginning(trainings, other, copied(whole[0], tmp_path / "run"), change):
        run = copied(whole[0], tmp_path / "run")
        assert trainings(other, run, Fault("kill", event), **change).killed, event
        again = trainings(None, run, Fault("kill", "step 7"))
        assert again.killed or again.code == 0, (event, again.output)


def beginning(trainings, settings, run: Path, how: dict) -> list[str]:
    """What happens to the files of a run until its first step."""
    outcome = trainings(settings, run, Fault("kill", "open train.log"), **how)
    assert outcome.killed, outcome.output
    return list(dict.fromkeys(event for event in outcome.events if event != "fsync"))


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target)
