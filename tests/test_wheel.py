"""The wheel, installed without the repository and run in a folder where other people's packages have our folders' names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ablation.studies import write_preset, write_study
from tests.training.processes import GUARD, TORCHRUN
from tests.training.tiny import write_dataset

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]  # package -> folder
VERSION = PROJECT["project"]["version"]

FOREIGN = (*FOLDERS.values(), "tests", "datasets", "util", "training", "cli", "data")
SETTINGS = ("data.workers=1", "op=native")  # a process that reads images, and the operator from the wheel's sources
STRANGER = 'raise RuntimeError(f"{__name__} is somebody else\'s")\n'
WITHOUT_THE_REPOSITORY = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""  # a sitecustomize, which Python runs after it has made an editable install known


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves a folder `build`, whose files would be in the next wheel too."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    bytecode = shutil.ignore_patterns("__pycache__")
    for name in (*FOLDERS.values(), "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=bytecode)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel) -> Path:
    """A folder for PYTHONPATH."""
    target = wheel.parent / "installed"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def pip(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def run(installed, tmp_path) -> Callable[..., str]:
    """Runs a program in a folder of somebody else, whose packages come first and cannot be imported; what it printed."""
    for name in FOREIGN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(STRANGER)
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_THE_REPOSITORY)
    surroundings = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}", "OMP_NUM_THREADS": "1"}

    def call(*command: object) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=GUARD)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A preset that is trained in no time."""
    return write_preset(tmp_path, write_dataset(tmp_path / "images", train=8, val=4), epochs=1)


def test_every_folder_with_python_files_is_a_package():
    found = {path.parent.relative_to(ROOT) for name in FOLDERS.values() for path in (ROOT / name).rglob("*.py")}
    names = {folder: package for package, folder in FOLDERS.items()}
    packages = {".".join((names[folder.parts[0]], *folder.parts[1:])) for folder in found}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_one_name_is_at_its_top_level(wheel):
    assert {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()} == {"dndetr", f"dndetr-{VERSION}.dist-info"}


def test_every_file_of_the_packages_is_in_it(wheel):
    """The presets and the operator's sources among them."""
    within = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("dndetr/")}
    assert within == {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_somebody_elses_packages_are_in_the_way_of_who_wants_them(run):
    """Else the tests below could not fail."""
    code = "import importlib, sys\ntry: importlib.import_module(sys.argv[1])\nexcept RuntimeError as error: print(error)"
    for name in FOREIGN:
        assert run(sys.executable, "-c", code, name) == f"{name} is somebody else's\n"


def test_it_is_imported_from_where_it_is_installed(run, installed):
    code = "import dndetr, dndetr.models.hosts, dndetr.csrc as csrc; print(dndetr.__file__, csrc.__file__, sep='\\n')"
    assert run(sys.executable, "-c", code).splitlines() == [
        f"{installed}/dndetr/__init__.py", f"{installed}/dndetr/csrc/__init__.py",
    ]  # fmt: skip


def test_the_command_runs_by_its_name_and_as_a_module(run, installed):
    for command in ([installed / "bin" / "dndetr"], [sys.executable, "-m", "dndetr"]):
        assert run(*command, "--version") == f"dndetr {VERSION}\n"
        listed = run(*command, "presets")
        assert all(path.stem in listed for path in (ROOT / "presets").glob("*.yaml"))


def test_torchrun_trains_in_two_processes_whose_workers_read_images(run, tiny, tmp_path):
    run(*TORCHRUN, "-m", "dndetr", "train", "--preset", tiny, "--out", "run", *SETTINGS)
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()


def test_a_study_trains_two_runs_at_once(run, tiny, tmp_path):
    options = ("--jobs", "2", "--seeds", "1", "--out", "out")
    run(sys.executable, "-m", "dndetr", "ablate", write_study(tmp_path), *options, *SETTINGS)
    assert len(list((tmp_path / "out").rglob("last.pt"))) == 2
