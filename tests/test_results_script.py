"""`make results` in the dry: what benchmarks/results.sh asks of dndetr, without a training."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dndetr.ablation.plan import read_study
from dndetr.ablation.runs import plan_trials
from dndetr.console import UserError
from tests.test_readme import ROOT, parsed

NOTED = """#!{python}
import pathlib, sys
with open("commands", "a") as file:
    print(*sys.argv[1:], sep="\\t", file=file)
if sys.argv[1] == "ablate":  # leaves a page, as every study does, and what the next commands look for
    out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    (out / "knowing").mkdir(parents=True)
    (out / "results.md").write_text("a page")
"""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the script names studies from


@pytest.fixture(scope="module")
def noted(tmp_path_factory) -> list[list[str]]:
    """The arguments of every call of dndetr, in order, where the data of bccd are."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("benchmarks", ".venv/bin", "bccd", "runs/results"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "results.sh", folder / "benchmarks")
    for name, text in ("dndetr", NOTED.format(python=sys.executable)), ("python", "#!/bin/sh\n"):
        (folder / ".venv" / "bin" / name).write_text(text)
        (folder / ".venv" / "bin" / name).chmod(0o755)
    done = subprocess.run([folder / "benchmarks" / "results.sh", "data.flip=0.25"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "docs" / "results" / "components" / "results.md").read_text() == "a page"
    return [line.split("\t") for line in (folder / "commands").read_text().splitlines()]


def test_every_command_is_understood_and_asks_for_runs_that_an_earlier_one_trains(noted):
    trained: set[Path] = set()
    for arguments in noted:
        asked = parsed(arguments)
        runs = asked.get("ckpt") or asked.get("run") or ()
        for run in runs if isinstance(runs, (list, tuple)) else (runs,):
            assert Path(run) in trained, arguments
        trained |= runs_of(arguments[0], asked)


def runs_of(command: str, asked: dict) -> set[Path]:
    """The run folders that a command trains. Raises UserError where a study or its settings are wrong."""
    out = asked.get("out")
    if command == "known-labels":
        return {Path(out) / "told", Path(out) / "control"}
    if command != "ablate":
        return set()
    study = read_study(asked["study"])
    preset = asked["preset"] or study.preset
    trials = plan_trials(study, preset, asked["overrides"], range(asked["seeds"]), Path(out))
    return {trial.folder for trial in trials}


def test_settings_reach_every_training(noted):
    for arguments in noted:
        if arguments[0] in ("ablate", "known-objects", "known-labels"):
            assert "data.flip=0.25" in arguments


def test_every_page_was_made_by_a_command_of_the_script(noted):
    """Up to the order of its settings, the number of jobs, and what is said of seeds and presets that are the default."""
    scripted = [study_of(arguments) for arguments in noted if arguments[0] == "ablate"]
    pages = {path: re.search(r"^dndetr (ablate .*)$", path.read_text(), re.M) for path in PAGES}
    made = {path: study_of(shlex.split(command[1])) for path, command in pages.items() if command}
    assert len(made) >= 9
    assert {path.parent.name: study for path, study in made.items() if study not in scripted} == {}


PAGES = sorted((ROOT / "docs" / "results").glob("*/results.md"))


def study_of(arguments: list[str]) -> tuple:
    asked = parsed(arguments)
    settings = frozenset(asked["overrides"]) - {"data.flip=0.25"}
    return asked["study"], asked["preset"] or read_study(asked["study"]).preset, asked["seeds"], str(asked["out"]), settings


def test_a_study_with_a_wrong_setting_is_found():
    with pytest.raises(UserError, match="nois"):
        runs_of("ablate", {"study": "groups", "preset": None, "overrides": ["nois.groups=1"], "seeds": 1, "out": "runs"})
