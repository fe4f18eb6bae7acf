"""`dndetr doctor`: what a training finds here, and what would break it. Speaks even where all but PyTorch is broken."""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import platform
import resource
import shutil
import textwrap
from pathlib import Path

import torch

from dndetr import __version__
from dndetr.console import in_one_line
from dndetr.files import nearest_folder
from dndetr.models import native
from dndetr.models.cache import cache_folder
from dndetr.training.environment import package_version


def doctor(op: native.Choice) -> tuple[str, list[str]]:
    """The findings, line by line, and what would break a run, a sentence each that says how to mend it.

    Looks for the operator as a training with that setting would, building it if need be.
    """
    native.choose(op)
    compiler = native.compiler()
    lines = [
        row("dndetr", __version__),
        row("python", f"{platform.python_version()}, {platform.platform()}"),
        row("torch", f"{torch.__version__}, torchvision {package_version('torchvision') or 'is missing'}"),
        row("processor", f"{processor_name()}, {cores()} cores, {torch.get_num_threads()} torch threads"),
        *(row(f"GPU {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())),
        row("C++ compiler", native.run(compiler, "--version").partition("\n")[0] or f"none ({compiler})"),
    ]
    if torch.cuda.is_available():
        lines.append(row("CUDA toolkit", toolkit()))
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        lines += operator(device)
    lines += [
        row("free disk", f"{gibibytes(free(Path()))} here, {gibibytes(free(cache_folder()))} in {cache_folder()}"),
        row("shared memory", gibibytes(free(SHARED)) if SHARED.is_dir() else "no /dev/shm here"),
        row("data loader", f"starts workers by {multiprocessing.get_start_method()}, {open_files()} open files at most"),
    ]
    return "\n".join(lines), [*packages(), *devices(op), *room(), *limits()]


PACKAGES = ("torchvision", "pycocotools", "scipy", "PIL", "yaml", "pydantic", "matplotlib", "rich", "typer", "ninja")
SHARED, CPU_LIMIT = Path("/dev/shm"), Path("/sys/fs/cgroup/cpu.max")
DISK, SHARED_NEEDED, FILES = 2**30, 2**28, 256  # bytes of disk and of shared memory, and open files, below which runs break


def packages() -> list[str]:
    """What cannot be imported, or does not fit PyTorch."""
    problems = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken extension module raises anything
            problems.append(f"the package {name} cannot be imported ({one_line(error)}); install dndetr anew")
    try:
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:
        problems.append(f"torchvision does not fit this PyTorch ({one_line(error)}); install both from one place")
    return problems


def devices(op: native.Choice) -> list[str]:
    """A GPU that PyTorch cannot use, and an operator that must be there and is not."""
    problems = []
    if torch.version.cuda and not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        problems.append(f"there is an NVIDIA driver, but PyTorch (CUDA {torch.version.cuda}) finds no GPU; see nvidia-smi")
    if op == "native":
        missing = [(device, native.missing(device)) for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]]
        problems += [f"op=native, but on {device} {why[0]}" for device, why in missing if why is not None]
    return problems


def room() -> list[str]:
    """Too little disk or shared memory, and folders that cannot be written."""
    problems = []
    for what, folder in (("run folders made here", Path()), ("what is built or generated (DNDETR_CACHE)", cache_folder())):
        there = nearest_folder(folder)
        if not os.access(there, os.W_OK):
            problems.append(f"{there.absolute()} cannot be written, which holds {what}; choose another folder")
        elif free(folder) < DISK:
            problems.append(f"{there.absolute()} has {gibibytes(free(folder))} left for {what}; make room")
    if SHARED.is_dir() and free(SHARED) < SHARED_NEEDED:
        problems.append(
            f"{SHARED} has {gibibytes(free(SHARED))}, through which workers send images; use data.workers=0, or give a "
            "container more (docker run --shm-size=8g)"
        )
    return problems


def limits() -> list[str]:
    """Limits of the system that data workers run into, and threads that get in each other's way."""
    problems = []
    if open_files() < FILES:
        problems.append(f"at most {open_files()} files may be open, workers need more; raise it (ulimit -n 4096)")
    if torch.get_num_threads() > cores():
        problems.append(
            f"PyTorch computes with {torch.get_num_threads()} threads on {cores()} cores; set OMP_NUM_THREADS={cores()}"
        )
    return problems


def cores() -> int:
    """The cores that this process may use, of which a scheduler or a container may leave it fewer than there are."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit: `max`
        time, period = map(int, CPU_LIMIT.read_text().split())
        allowed = min(allowed, math.ceil(time / period))
    return allowed


def open_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free(folder: Path) -> int:
    """Bytes that can still be written where the folder is or will be."""
    return shutil.disk_usage(nearest_folder(folder)).free


def gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def one_line(error: Exception) -> str:
    return in_one_line(f"{type(error).__name__}: {error}")[:200]


def operator(device: str) -> list[str]:
    """How deformable attention is computed on a device, and if not by the operator, why, in the compiler's own words."""
    name = f"op on {device}"
    if native.chosen() == "torch":
        return [row(name, "PyTorch's grid_sample, as op=torch asks")]
    why = native.missing(device)
    if why is None:
        return [row(name, f"native, from {native.folder(device)}")]
    sentence, words = why
    found = [row(name, f"PyTorch's grid_sample: {sentence}")]
    return found + ([textwrap.indent(words, "    ")] if "\n" in words else [])


def toolkit() -> str:
    try:
        return native.cuda_home()
    except RuntimeError as error:
        return str(error)


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def row(name: str, value: str) -> str:
    return f"{name:<14}{value}"
