"""The CUDA kernels without a GPU: their bodies, csrc/lane.h, run on the CPU by lanes.cpp, lane after lane, row after row.

What this cannot see is what only a GPU does, the launches, atomics and shuffles of csrc/cuda.cu: see test_native_gpu.py.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dndetr.models import native
from tests.models.sampling import Call, compare, expected, make

TYPES = {"float": torch.float32, "double": torch.float64, "half": torch.bfloat16}
KERNELS = ["float_4", "float_1", "double_2", "double_1", "half_8", "half_1"]


class Sizes(ctypes.Structure):
    names = ("batch", "tokens", "heads", "width", "queries", "levels", "points", "lanes")
    _fields_ = [(name, ctypes.c_int64) for name in names]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    assert shutil.which(native.compiler()), f"there is no C++ compiler ({native.compiler()})"
    made = tmp_path_factory.mktemp("lanes") / "lanes.so"
    flags = ["-O1", "-std=c++17", "-fPIC", "-shared", f"-I{native.SOURCES}"]
    command = [native.compiler(), *flags, Path(__file__).with_name("lanes.cpp"), "-o", made]
    # Some compilers come without the library that watches for undefined behaviour.
    watched = [*command, "-fsanitize=undefined,float-cast-overflow"]
    if subprocess.run(watched, capture_output=True, check=False).returncode:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(made))


@pytest.fixture(autouse=True)
def nothing_undefined(capfd):
    """What C++ leaves undefined may do anything on a GPU: conversions of what is too large, misaligned addresses."""
    yield
    assert "runtime error" not in capfd.readouterr().err


def pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def run(library: ctypes.CDLL, kernel: str, lanes: int, call: Call) -> list[Tensor]:
    """Result and gradients, those of values in what is computed in, as in csrc/cuda.cu."""
    batch, tokens, heads, width = call.value.shape
    queries, levels, points = (call.locations.shape[i] for i in (1, 3, 4))
    sizes = ctypes.byref(Sizes(batch, tokens, heads, width, queries, levels, points, lanes))
    shapes = torch.tensor(call.shapes, dtype=torch.int32)
    inputs = [pointer(x) for x in (shapes, *call.inputs)]
    result = torch.full_like(call.grad, torch.nan)
    getattr(library, f"forward_{kernel}")(sizes, *inputs, pointer(result))
    gradients = [torch.zeros_like(x, dtype=call.locations.dtype) for x in call.inputs]
    backward = getattr(library, f"backward_{kernel}")
    backward.restype = ctypes.c_int64
    assert backward(sizes, *inputs, pointer(call.grad), *(pointer(x) for x in gradients)) == 0
    return [result, gradients[0].to(call.value.dtype), *gradients[1:]]


def example(kernel: str, **sizes) -> Call:
    dtype = TYPES[kernel.partition("_")[0]]
    return make(
        **{"shapes": [(3, 4), (2, 2)], "queries": 5, **sizes}, dtype=dtype, fine=torch.promote_types(dtype, torch.float32)
    )


@pytest.mark.parametrize("lanes", [1, 2, 4, 32])
@pytest.mark.parametrize("packs", [1, 2, 3, 5, 33])
@pytest.mark.parametrize("kernel", KERNELS)
def test_lanes_share_the_channels_of_a_head(kernel, packs, lanes, library):
    """Among the cases are lanes without any channels and lanes with several packs."""
    call = example(kernel, width=packs * int(kernel.partition("_")[2]))
    compare(run(library, kernel, lanes, call), expected(call), call)


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 1, "heads": 1, "queries": 1, "points": 1, "shapes": [(1, 1)]},
        {"batch": 3, "heads": 5, "queries": 2, "points": 3, "shapes": [(4, 3)]},
        {"batch": 5, "heads": 1, "queries": 40, "points": 8, "shapes": [(2, 2), (1, 3), (5, 1)]},
        {"batch": 2, "heads": 3, "queries": 3, "points": 2, "shapes": [(13, 17), (7, 9), (4, 5), (2, 3), (1, 1)]},
        {"batch": 2, "queries": 0},
        {"batch": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_are_queries_and_heads_of_all_images(kernel, sizes, library):
    call = example(kernel, width=16, **sizes)
    compare(run(library, kernel, 4, call), expected(call), call)


@pytest.mark.parametrize("kernel", KERNELS)
def test_locations_far_outside_give_and_take_nothing(kernel, library):
    call = example(kernel, width=16)
    for far in (-3.0, 2.0, 1e30, -1e30):
        call.locations[:, ::2, :, 0] = far
        found, wanted = run(library, kernel, 4, call), expected(call)
        compare(found, wanted, call)
        assert not found[2][:, ::2, :, 0].count_nonzero()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_a_location_that_is_no_number_spoils_its_own_row_only(kernel, strange, library):
    call = example(kernel, width=16)
    right = run(library, kernel, 2, call)
    call.locations[1, 2, 1, 0, 3, 0] = strange
    found = run(library, kernel, 2, call)
    for i in (0, 2, 3):
        x, y = (rows[i].unflatten(-1, (2, 16)) if i == 0 else rows[i] for rows in (found, right))
        assert not x[1, 2, 1].isfinite().all()
        x[1, 2, 1] = y[1, 2, 1]
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_bits_as_locations_stay_in_the_level(dtype, library):
    """What the kernels read and write is never elsewhere."""
    rng = torch.Generator().manual_seed(0)
    bits, least = (torch.int32, -(2**31)) if dtype == torch.float32 else (torch.int64, -(2**63))
    strange = torch.randint(least, -(least + 1), (50000, 2), dtype=bits, generator=rng).view(dtype)
    usual = torch.rand(50000, 2, dtype=dtype, generator=rng) * 1.5 - 0.25
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, 1e-45, 3e38, -3e38], dtype=dtype)
    locations = torch.cat((strange, usual, torch.cartesian_prod(special, special)))
    tokens = getattr(library, "tokens_float" if dtype == torch.float32 else "tokens_double")
    for rows, columns, first in ((1, 1, 0), (7, 5, 30), (1, 1000, 3), (300, 200, 10**6)):
        found = (ctypes.c_int64 * 2)(first)
        tokens(ctypes.c_int64(len(locations)), pointer(locations), ctypes.c_int64(rows), ctypes.c_int64(columns), found)
        assert first <= found[0] <= found[1] < first + rows * columns
        assert (found[0], found[1]) == (first, first + rows * columns - 1)  # the corners are reached
