"""The operator of csrc/: built on its first use, kept for later runs, and never in the way where it cannot be had."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor
from torch import library as torch_library

from dndetr import csrc
from dndetr.models.cache import cache_folder

Choice = Literal["auto", "native", "torch"]  # native: nothing else will do; torch: never
CHOICES = get_args(Choice)
SOURCES = Path(csrc.__file__).resolve().parent
FILES = {"cpu": ("operator.cpp", "cpu.cpp"), "cuda": ("cuda.cu",)}
SUFFIXES = (".h", ".cpp", ".cu")  # of sources: Python keeps its bytecode beside them
SECONDS = {"cpu": 10, "cuda": 45}  # what a build takes, roughly

WHOLE = b"dndetr: whole"  # ends every library that was written to its end; loaders do not mind

logger = logging.getLogger("dndetr")
_choice: Choice = "auto"


class OperatorError(RuntimeError):
    """Why the operator cannot be had though nothing else was wanted, in one sentence."""


def choose(choice: Choice) -> None:
    """Which implementation this process uses from now on."""
    global _choice
    _choice = choice


def chosen() -> Choice:
    return _choice


@torch.compiler.assume_constant_result
def ready(device: str) -> bool:
    """Whether to use the operator for tensors of a device type; the first question builds or loads it.

    Raises OperatorError where it is missing and `native` was chosen.
    """
    if _choice == "torch":
        return False
    why = missing(device)
    if why is not None and _choice == "native":
        raise OperatorError(f"op=native, but {why[0]}; mend that, or take op=auto")
    return why is None


@functools.cache
def missing(device: str) -> tuple[str, str] | None:
    """None where the operator is loaded, else why it is not: in one sentence, and all that the compiler said."""
    if device not in FILES:
        return f"there is no operator for {device}", ""
    if device == "cuda" and (why := missing("cpu")) is not None:
        return why  # the CPU library declares the operator
    try:
        load(device)
    except Exception as error:  # whatever goes wrong, PyTorch's own version works
        words = str(error).strip()
        first = next((line for line in words.splitlines() if re.search(r"\berror\b", line)), words.partition("\n")[0])
        sentence = f"the operator for {device} cannot be built: {first.strip() or type(error).__name__}"
        if _choice == "auto":
            logger.warning(f"{sentence}; PyTorch's grid_sample does its work, slower (dndetr doctor tells more)")
        return sentence, words
    return None


def load(device: str) -> None:
    """Load the library of a device type, after building it if this machine has not done so before."""
    library = folder(device) / "op.so"
    if whole(library) or not build_once(device, library):
        torch.ops.load_library(library)
    if device == "cpu":
        register()


def build_once(device: str, library: Path) -> bool:
    """Of several processes let one build while the others wait; whether it was this one, which has loaded it then."""
    library.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with locked(library.parent / "lock"):
        if whole(library):
            return False
        report_earlier_failure(library.parent, since=began)
        build(device, library)
        return True


def whole(library: Path) -> bool:
    """A cut library would not fail to load, it would kill the process."""
    return library.is_file() and library.read_bytes().endswith(WHOLE)


def build(device: str, library: Path) -> None:
    """Compile in a folder of its own, and load what came out; the library appears whole in its place or not at all."""
    if shutil.which(compiler()) is None:
        raise RuntimeError(f"error: there is no C++ compiler ({compiler()}): install one, or name it in CXX")
    logger.info(f"building the deformable-attention operator for {device}: once, about {SECONDS[device]} s")
    began = time.perf_counter()
    for left_behind in library.parent.glob("build-*"):  # by a builder that was killed; the lock is ours
        shutil.rmtree(left_behind, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-", ignore_cleanup_errors=True) as scratch:
        try:
            compile_and_load(device, scratch)
        except Exception as error:
            (library.parent / "failed.txt").write_text(str(error))
            raise
        built = Path(scratch) / f"dndetr_{device}.so"
        with open(built, "ab") as file:
            file.write(WHOLE)
            file.flush()
            os.fsync(file.fileno())
        os.replace(built, library)
    logger.info(f"built in {time.perf_counter() - began:.0f} s, kept in {library.parent}")


def compile_and_load(device: str, scratch: str) -> None:
    with extension_tools(device) as tools:
        tools.load(
            f"dndetr_{device}",
            [str(SOURCES / name) for name in FILES[device]],
            build_directory=scratch,
            is_python_module=False,
            **flags(device),
        )


def flags(device: str) -> dict[str, list[str]]:
    """Compiler and linker flags, as torch.utils.cpp_extension calls them."""
    if device == "cuda":
        return {"extra_cuda_cflags": ["-O3", "--extended-lambda", "--threads", "2"]}
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    # Without -fopenmp in both places at::parallel_for is silently serial.
    threads = [] if sys.platform == "darwin" else ["-fopenmp"]
    exact = ["-fno-math-errno", "-fno-trapping-math"]  # results stay as IEEE says, NaN included
    return {"extra_cflags": ["-O3", native, *exact, "-Wno-psabi", *threads], "extra_ldflags": threads}


@contextlib.contextmanager
def extension_tools(device: str) -> Iterator[ModuleType]:
    """torch.utils.cpp_extension, with the ninja of this installation and where CUDA really is."""
    import ninja

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it guesses CUDA's place aloud
    with contextlib.redirect_stderr(io.StringIO()):  # where PyTorch 2.7 does so
        from torch.utils import cpp_extension

    before, home = os.environ["PATH"], cpp_extension.CUDA_HOME
    os.environ["PATH"] = os.pathsep.join((ninja.BIN_DIR, before))
    if device == "cuda":
        cpp_extension.CUDA_HOME = cuda_home()
    try:
        with warnings.catch_warnings(action="ignore"):  # 2.7 knows few names of compilers
            yield cpp_extension
    finally:
        os.environ["PATH"], cpp_extension.CUDA_HOME = before, home


def compiler() -> str:
    """The C++ compiler that cpp_extension takes: one word."""
    return os.environ.get("CXX") or "c++"


def cuda_home() -> str:
    """The folder of the CUDA toolkit. Where nvcc is a link or a script, torch guesses wrongly; nvcc itself knows.

    Raises RuntimeError where there is none, or one of another major version than PyTorch's.
    """
    if not Path(nvcc()).is_file():
        raise RuntimeError(f"error: there is no CUDA compiler ({nvcc()}): install the CUDA toolkit, or name it in CUDA_HOME")
    version = re.search(r"release (\d+)\.", run(nvcc(), "--version"))
    if version and torch.version.cuda and version[1] != torch.version.cuda.partition(".")[0]:
        raise RuntimeError(f"error: nvcc is of CUDA {version[1]}, but PyTorch was built for CUDA {torch.version.cuda}")
    top = re.search(r"TOP=(.+)", run(nvcc(), "--dryrun", "-x", "cu", os.devnull))
    return str(Path(top[1].strip()).resolve()) if top else str(Path(nvcc()).resolve().parent.parent)


def nvcc() -> str:
    """Where the CUDA compiler should be."""
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return str(Path(given) / "bin" / "nvcc") if given else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


def folder(device: str) -> Path:
    """Where the library of a device type is kept."""
    return cache_folder() / f"{device}-{digest(device)}"


def digest(device: str) -> str:
    """Of all that a library depends on: torch, compilers, flags, sources, and the processor or the GPUs it is for."""
    parts = [torch.__version__, str(flags(device)), compiler(), run(compiler(), "--version"), platform.machine()]
    if device == "cuda":
        capabilities = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
        parts += [run(nvcc(), "--version"), str(capabilities), os.environ.get("TORCH_CUDA_ARCH_LIST", "")]
    else:
        parts.append(processor())
    whole = hashlib.sha256("\0".join(parts).encode())
    for path in sorted(path for path in SOURCES.iterdir() if path.suffix in SUFFIXES):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def processor() -> str:
    """What -march=native follows: a home folder may be shared by machines of several kinds."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return platform.processor()


def run(*command: str) -> str:
    """What a command says, on either stream; nothing where it cannot be run."""
    with contextlib.suppress(OSError):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.stdout
    return ""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that dies is free."""
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def report_earlier_failure(place: Path, since: float) -> None:
    """Raise what another process was told while this one waited, so that a failing build is tried once, not eight times."""
    failed = place / "failed.txt"
    if failed.is_file() and failed.stat().st_mtime > since:
        raise RuntimeError(failed.read_text())


def register() -> None:
    """What PyTorch needs to know besides the kernels: shapes without data, and the gradient."""

    @torch_library.register_fake("dndetr::ms_deform_attn")
    def shapes_of_result(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])

    @torch_library.register_fake("dndetr::ms_deform_attn_backward")
    def shapes_of_gradients(
        grad: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (value, locations, weights))

    def keep(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = torch.ops.dndetr.ms_deform_attn_backward(grad, *ctx.saved_tensors)
        return value, None, locations, weights

    def refuse(ctx, *grads: Tensor) -> None:
        raise NotImplementedError("ms_deform_attn has no second derivative")  # without this it would be 0

    torch_library.register_autograd("dndetr::ms_deform_attn", backward, setup_context=keep)
    torch_library.register_autograd("dndetr::ms_deform_attn_backward", refuse)
