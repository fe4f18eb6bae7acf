"""`dndetr doctor`: what a training finds here - versions, devices, compilers, and how deformable attention is computed."""

from __future__ import annotations

import os
import platform
import textwrap

import torch

from dncli import __version__
from dncli.training.run import package_version
from models import native


def doctor(op: native.Choice) -> str:
    """The findings, line by line. Looks for the operator as a training with that setting would, building it if need be."""
    native.choose(op)
    compiler = native.compiler()
    lines = [
        row("dndetr", __version__),
        row("python", f"{platform.python_version()}, {platform.platform()}"),
        row("torch", f"{torch.__version__}, torchvision {package_version('torchvision')}"),
        row("processor", f"{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"),
        *(row(f"GPU {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())),
        row("C++ compiler", native.run(compiler, "--version").partition("\n")[0] or f"none ({compiler})"),
    ]
    if torch.cuda.is_available():
        lines.append(row("CUDA toolkit", toolkit()))
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        lines += operator(device)
    return "\n".join(lines)


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
