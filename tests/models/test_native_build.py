"""Building and keeping the operator, each case in processes of its own (see building.py).

Only `built` and the test of CUDA compile for real; where the way of building is what counts, the compiler is a script that
copies the library of `built`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dndetr.models import native
from dndetr.models.cache import cache_folder
from dndetr.models.deformable import ms_deform_attn
from tests.models.building import Answer, answers, ask, files, script, started, starting
from tests.models.sampling import check, make

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the lock is one of Unix")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, list[Answer]]:
    """A cache, and what three processes said that came upon it empty at once. Not to be changed."""
    cache = tmp_path_factory.mktemp("native") / "cache"
    return cache, answers(cache, count=3)


@pytest.fixture
def copying(built, tmp_path) -> Iterator[tuple[str, Path]]:
    """A compiler that takes no time, and a file: where that is, one call renames it and waits until it is gone altogether."""
    (library,) = built[0].glob("*/op.so")
    hold, held = tmp_path / "hold", tmp_path / "held"
    compiler = script(
        tmp_path / "copying-c++",
        f'if mv "{hold}" "{held}" 2>/dev/null; then while [ -e "{held}" ]; do sleep 0.1; done; exit 1; fi',
        'while [ "$1" != -o ]; do shift; done',
        f'case "$2" in *.so) cp "{library}" "$2";; *) : > "$2";; esac',
    )
    yield compiler, hold
    hold.unlink(missing_ok=True)
    held.unlink(missing_ok=True)  # ninja puts what it starts into groups of their own, which outlive the builder's


# The first use, and later ones


def test_of_processes_that_start_at_once_one_builds_and_all_get_the_operator(built):
    cache, found = built
    lines = [line for one in found for line in one.lines]
    assert [one.why for one in found] == [None] * 3, found
    assert all(one.taken for one in found)
    assert len(starting(lines, "INFO building the deformable-attention operator for cpu")) == 1
    assert len(starting(lines, "INFO built in")) == 1
    assert len(lines) == 2
    assert [one.printed for one in found] == [""] * 3
    assert len(list(cache.iterdir())) == 1
    assert files(cache) == ["lock", "op.so"]


def test_a_later_process_only_loads(built):
    (library,) = built[0].glob("*/op.so")
    before = library.stat()
    (found,) = answers(built[0])
    assert found == Answer(None, True, [], "")
    assert library.stat() == before


def test_importing_builds_nothing(tmp_path):
    builders = "[name for name in sys.modules if 'cpp_extension' in name or name == 'ninja']"
    code = f"import sys, dndetr.models.deformable; print({builders})"
    env = os.environ | {"DNDETR_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "cache").exists()


def ask_for_pytorch() -> tuple:
    native.choose("torch")
    check(ms_deform_attn, make([(3, 4), (2, 2)]))
    return None, hasattr(torch.ops.dndetr, "ms_deform_attn")


def test_told_to_take_pytorch_it_builds_nothing(tmp_path):
    cache = tmp_path / "cache"
    assert answers(cache, question=ask_for_pytorch) == [Answer(None, False, [], "")]
    assert not cache.exists()


def test_the_folder_is_the_users_cache_unless_another_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("DNDETR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dndetr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "dndetr"
    monkeypatch.setenv("DNDETR_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.setenv("DNDETR_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "home" / "mine"
    assert native.folder("cpu").parent == cache_folder()


def test_bytecode_beside_the_sources_is_no_part_of_the_library(monkeypatch, tmp_path):
    sources = shutil.copytree(native.SOURCES, tmp_path / "csrc")
    expected = native.digest("cpu")
    (sources / "__pycache__").mkdir(exist_ok=True)
    (sources / "__init__.py").write_text("# another module")
    monkeypatch.setattr(native, "SOURCES", sources)
    assert native.digest("cpu") == expected


def test_the_library_is_one_of_its_flags_sources_and_compiler(monkeypatch, tmp_path):
    digests = [native.digest("cpu")]
    assert native.digest("cpu") == digests[0]
    assert native.digest("cuda") != digests[0]
    with monkeypatch.context() as patch:
        flags = native.flags("cpu")
        patch.setattr(native, "flags", lambda device: flags | {"extra_cflags": [*flags["extra_cflags"], "-g"]})
        digests.append(native.digest("cpu"))
    for name in ("cpu.cpp", "point.h", "new.h"):
        sources = tmp_path / name
        shutil.copytree(native.SOURCES, sources)
        with open(sources / name, "a") as file:
            file.write("// changed\n")
        with monkeypatch.context() as patch:
            patch.setattr(native, "SOURCES", sources)
            digests.append(native.digest("cpu"))
    with monkeypatch.context() as patch:
        patch.setenv("CXX", script(tmp_path / "c++"))
        digests.append(native.digest("cpu"))
        (tmp_path / "c++").write_text((tmp_path / "c++").read_text().replace("12.2.0", "12.3.0"))
        digests.append(native.digest("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(native, "processor", lambda: "another one")
        digests.append(native.digest("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        digests.append(native.digest("cpu"))
    assert len(set(digests)) == len(digests)
    assert native.digest("cpu") == digests[0]


def test_the_gpus_it_is_built_for_are_part_of_a_library_for_cuda(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    one = native.digest("cuda")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    assert native.digest("cuda") != one


# Where it cannot be had


def fallen_back(found: Answer) -> str:
    """The one line that says why PyTorch's version does the work."""
    assert found.why is not None
    assert not found.taken
    assert found.printed == ""
    warnings = [line for line in found.lines if not line.startswith("INFO building")]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"WARNING {found.why[0]}")
    assert "\n" not in warnings[0]
    return warnings[0]


def test_without_a_compiler_pytorch_does_the_work(tmp_path):
    (found,) = answers(tmp_path / "cache", CXX="/nonexistent")
    line = fallen_back(found)
    assert "there is no C++ compiler (/nonexistent)" in line
    assert found.lines == [line]  # nothing about building, which was never begun


def test_a_compiler_that_fails_is_asked_once_and_its_own_words_are_kept(tmp_path):
    asked = tmp_path / "asked"
    compiler = script(
        tmp_path / "failing-c++",
        f'echo asked >> "{asked}"',
        "sleep 3",  # while the other processes come to wait
        'echo "csrc/cpu.cpp:1:1: fatal error: boom" >&2',
        "exit 1",
    )
    found = answers(tmp_path / "cache", count=3, CXX=compiler)
    lines = {fallen_back(one) for one in found}
    assert len(lines) == 1
    assert "fatal error: boom" in lines.pop()
    for one in found:
        assert "csrc/cpu.cpp:1:1: fatal error: boom" in one.why[1]
        assert "failing-c++" in one.why[1]
    assert len(starting([line for one in found for line in one.lines], "INFO building")) == 1
    assert len(asked.read_text().splitlines()) <= len(native.FILES["cpu"])
    assert "op.so" not in files(tmp_path / "cache")
    # A later process tries again: what was missing may be there now.
    (later,) = answers(tmp_path / "cache", CXX=compiler)
    assert len(starting(later.lines, "INFO building")) == 1
    assert "fatal error: boom" in fallen_back(later)


def ask_for_the_operator_only() -> tuple:
    native.choose("native")
    words = []
    for _ in range(2):
        with pytest.raises(native.OperatorError) as found:
            check(ms_deform_attn, make([(3, 4), (2, 2)]))
        words.append(str(found.value))
    assert words[0] == words[1]
    return (words[0], ""), False


def test_asked_for_the_operator_only_it_raises_one_sentence(tmp_path):
    compiler = script(tmp_path / "failing-c++", "echo fatal error: boom; echo and more; exit 1")
    (found,) = answers(tmp_path / "cache", question=ask_for_the_operator_only, CXX=compiler)
    assert found.why[0] == "op=native, but the operator for cpu cannot be built: fatal error: boom; mend that, or take op=auto"
    assert len(found.lines) == len(starting(found.lines, "INFO building")) == 1  # the error has said it all


@pytest.mark.parametrize("place", ["cache", "cache/folder"])
def test_a_cache_that_cannot_be_written_is_no_crash(place, tmp_path):
    (tmp_path / "cache").write_text("a file")
    (found,) = answers(tmp_path / place)
    assert str(tmp_path / "cache") in fallen_back(found)


# What other processes left


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.999])
def test_a_library_that_was_cut_off_is_built_anew(share, copying, tmp_path):
    """As by a full disk. To load it would kill the process."""
    cache = tmp_path / "cache"
    (first,) = answers(cache, CXX=copying[0])
    assert first.taken, first
    (library,) = cache.glob("*/op.so")
    whole = library.read_bytes()
    library.write_bytes(whole[: int(len(whole) * share)])
    (found,) = answers(cache, CXX=copying[0])
    assert found.taken, found
    assert len(starting(found.lines, "INFO building")) == 1
    assert library.read_bytes().startswith(whole)
    assert files(cache) == ["lock", "op.so"]


@contextlib.contextmanager
def compiling(compiler: str, hold: Path, cache: Path) -> Iterator[multiprocessing.Process]:
    """A process in the middle of a build."""
    hold.touch()
    with started(ask, cache, CXX=compiler) as ((process, _),):
        deadline = time.monotonic() + 100
        while hold.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process


def test_after_a_builder_was_killed_the_next_process_builds(copying, tmp_path):
    compiler, hold = copying
    cache = tmp_path / "cache"
    with compiling(compiler, hold, cache) as process:
        process.kill()  # not what it has started, which goes on
        process.join()
        assert "op.so" not in files(cache)
        (found,) = answers(cache, CXX=compiler)
    assert found.why is None
    assert found.taken
    assert len(starting(found.lines, "INFO building")) == 1
    assert files(cache) == ["lock", "op.so"]


def test_who_waits_for_a_builder_that_is_killed_builds(copying, tmp_path):
    compiler, hold = copying
    cache = tmp_path / "cache"
    with compiling(compiler, hold, cache) as process, started(ask, cache, CXX=compiler) as ((_, pipe),):
        assert not pipe.poll(1)  # it waits
        process.kill()
        found = pipe.recv()
    assert isinstance(found, Answer), found
    assert found.taken


# The operator for CUDA


@pytest.mark.parametrize(
    ("release", "words"),
    [(None, "there is no CUDA compiler"), ("7.5", "nvcc is of CUDA 7, but PyTorch was built for CUDA 12")],
)
def test_without_the_right_cuda_compiler_it_says_so(release, words, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    if release:
        (tmp_path / "bin").mkdir()
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
        nvcc.chmod(0o755)
    with pytest.raises(RuntimeError, match=f"error: {words}"):
        native.cuda_home()


def ask_for_cuda() -> tuple:
    why = native.missing("cpu")
    native.load("cuda")
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = ("dndetr::ms_deform_attn", "dndetr::ms_deform_attn_backward")
    return why, all(has(name, "CUDA") for name in names)


def test_the_kernels_for_cuda_compile_link_and_load_without_a_gpu(built, tmp_path):
    if torch.version.cuda is None:
        pytest.skip("this PyTorch is one without CUDA")
    try:
        native.cuda_home()
    except RuntimeError as error:
        pytest.skip(str(error))
    cache = tmp_path / "cache"
    shutil.copytree(built[0], cache)
    (found,) = answers(cache, question=ask_for_cuda, TORCH_CUDA_ARCH_LIST="8.0;9.0")
    assert found.why is None
    assert found.taken
    assert len(starting(found.lines, "INFO building the deformable-attention operator for cuda")) == 1
    (library,) = cache.glob("cuda-*/op.so")
    for architecture in (b"sm_80", b"sm_90"):
        assert architecture in library.read_bytes()
