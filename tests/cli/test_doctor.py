"""`dndetr doctor`: what it says of this machine, and what would break a run here."""

import importlib
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from dndetr import doctor
from dndetr.models import native

ROOT = Path(__file__).parents[2]
ROWS = ["dndetr", "python", "torch", "processor", "C++ compiler", "op on cpu", "free disk", "shared memory", "data loader"]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def healthy(monkeypatch):
    """A machine without a GPU, on which nothing is wrong."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(native, "_choice", "auto")  # which doctor changes
    monkeypatch.setattr(native, "missing", lambda device: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**40))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: True)
    monkeypatch.setattr(doctor, "open_files", lambda: 1024)


def test_it_tells_what_there_is_and_finds_nothing_wrong(healthy):
    text, problems = doctor.doctor("auto")
    assert [line[:14].strip() for line in text.splitlines()] == ROWS
    assert f"op on cpu     native, from {native.folder('cpu')}\n" in text
    assert problems == []


def test_it_tells_why_there_is_no_operator(healthy, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda device: ("it cannot be built: boom", "ninja: x\na.cpp: error: boom"))
    said = "op on cpu     PyTorch's grid_sample: it cannot be built: boom\n    ninja: x\n    a.cpp: error: boom\n"
    text, problems = doctor.doctor("auto")
    assert said in text
    assert problems == []  # slower, but a run is fine
    assert doctor.doctor("native")[1] == ["op=native, but on cpu it cannot be built: boom"]
    text, problems = doctor.doctor("torch")
    assert "op on cpu     PyTorch's grid_sample, as op=torch asks\n" in text
    assert problems == []


def no_room(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**26 if str(path) == "/dev/shm" else 2**40))


def full_disk(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**20 if str(path) != "/dev/shm" else 2**40))


def no_scipy(monkeypatch):
    real = importlib.import_module
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: real(name))


def broken_torchvision(monkeypatch):
    def refuse(*_):
        raise RuntimeError("operator torchvision::nms\n does not exist")

    monkeypatch.setattr("torchvision.ops.nms", refuse)


def lost_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")


BROKEN = {
    "small shared memory": (no_room, "/dev/shm has 0.1 GiB, through which workers send images; use data.workers=0"),
    "a full disk": (full_disk, "has 0.0 GiB left for run folders made here; make room"),
    "a folder that cannot be written": (
        lambda m: m.setattr(doctor.os, "access", lambda path, mode: False),
        "cannot be written",
    ),
    "few open files": (lambda m: m.setattr(doctor, "open_files", lambda: 64), "at most 64 files may be open"),
    "too many threads": (lambda m: m.setattr(torch, "get_num_threads", lambda: 999), "999 threads on"),
    "a package that is gone": (no_scipy, "the package scipy cannot be imported (ModuleNotFoundError"),
    "another torchvision": (broken_torchvision, "does not fit this PyTorch (RuntimeError: operator torchvision::nms does not"),
    "a GPU that is not found": (lost_gpu, "there is an NVIDIA driver, but PyTorch (CUDA 13.0) finds no GPU"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_would_break_a_run_is_one_sentence(healthy, monkeypatch, kind):
    spoil, said = BROKEN[kind]
    spoil(monkeypatch)
    problems = doctor.doctor("auto")[1]
    assert problems and said in problems[0]
    assert not any("\n" in problem for problem in problems)


def test_it_speaks_where_everything_else_is_broken():
    """In a process of its own, since packages that have been imported are there."""
    broken = [name for name in doctor.PACKAGES if name not in ("rich", "typer", "pydantic")]  # of which the command is made
    lines = "import sys", f"sys.modules |= dict.fromkeys({broken})", "sys.argv = ['dndetr', 'doctor']"
    code = "; ".join((*lines, "from dndetr import cli", "cli.main()"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith("dndetr  ")
    assert all(f"the package {name} cannot be imported" in done.stderr for name in broken)
    assert "internal error" not in done.stderr


@pytest.mark.parametrize(("limit", "cores"), [("150000 100000", 2), ("max 100000", 8), (None, 8)])
def test_a_container_may_allow_fewer_cores_than_there_are(monkeypatch, tmp_path, limit, cores):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(doctor, "CPU_LIMIT", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit + "\n")
    assert doctor.cores() == cores


def test_problems_are_told_on_stderr_with_exit_code_1(healthy, main, monkeypatch):
    done = main("doctor")
    assert (done.code, done.err) == (0, "")
    monkeypatch.setattr(doctor, "open_files", lambda: 64)
    done = main("doctor")
    assert done.code == 1
    assert done.err == "at most 64 files may be open, workers need more; raise it (ulimit -n 4096)\n"
    done = main("doctor", "--op", "fast")
    assert done == (2, "", "--op must be auto or native or torch, got 'fast'\n")
