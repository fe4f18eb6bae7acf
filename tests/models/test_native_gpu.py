"""The operator for CUDA, held to PyTorch's version of it on a GPU. What vouches for it elsewhere: test_native_lanes.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch import library as torch_library

from dndetr.models import deformable, native
from dndetr.models.deformable import DeformableAttention, ms_deform_attn, ms_deform_attn_torch
from tests.models.sampling import DTYPES, Call, check, compare, expected, make, never, operator, results

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("restored"),
]

DEVICE = "cuda"
LEVELS = [(13, 17), (7, 9), (4, 5), (1, 2)]


@pytest.fixture(autouse=True, scope="module")
def built():
    """Without the operator every test here would compare PyTorch's version with itself."""
    assert native.missing(DEVICE) is None


# Widths of less than a pack, of packs and a rest, of as many packs as lanes, of more packs than lanes.
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 12, 16, 24, 32, 33, 48, 64, 100, 128, 160, 256, 300])
@pytest.mark.parametrize(("dtype", "fine"), DTYPES, ids=str)
def test_any_width_and_dtypes(dtype, fine, width):
    check(operator, make(LEVELS, queries=37, heads=3, width=width, dtype=dtype, fine=fine, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 0},
        {"batch": 5, "queries": 3, "heads": 1},
        {"queries": 0},
        {"queries": 1, "heads": 1, "batch": 1, "points": 1, "shapes": [(1, 1)]},
        {"queries": 1000, "heads": 8, "width": 32},
        {"points": 17},
        {"points": 0},
        {"shapes": [(3, 5)] * 20, "points": 1},
    ],
    ids=str,
)
def test_any_sizes(sizes, dtype):
    check(operator, make(**{"shapes": LEVELS, **sizes}, dtype=dtype, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_long_sums_of_halves_are_rounded_once(dtype):
    check(operator, make([(2, 2)], queries=400, points=16, dtype=dtype, fine=torch.float32, device=DEVICE))


def test_width_0_gives_gradients_of_0():
    call = make(LEVELS, width=0, device=DEVICE)
    for x in results(operator, call):
        assert not x.count_nonzero()


def test_a_device_agrees_with_the_cpu():
    call = make(LEVELS, dtype=torch.float32, device=DEVICE)
    on_cpu = call.map(Tensor.cpu)
    for x, y in zip(results(operator, call), results(operator, on_cpu), strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [ms_deform_attn, operator], ids=["public", "operator"])
def test_finite_differences_agree(function):
    call = make([(3, 4), (2, 2)], batch=2, queries=2, width=3, points=2, device=DEVICE)
    inputs = [x.requires_grad_() for x in call.inputs]
    run = lambda v, p, w: function(v, call.shapes, p, w)  # noqa: E731
    # Atomics add in any order.
    assert torch.autograd.gradcheck(run, inputs, nondet_tol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pytorch_finds_nothing_wrong_with_its_registration(dtype):
    call = make(LEVELS, dtype=dtype, fine=torch.float32, device=DEVICE)
    inputs = [x.requires_grad_() for x in call.inputs]
    arguments = inputs[0], torch.tensor(call.shapes), *inputs[1:]
    torch_library.opcheck(torch.ops.dndetr.ms_deform_attn, arguments, rtol=1e-2, atol=1e-2)


def odd_offset(x: Tensor) -> Tensor:
    """Contiguous, but no address that several numbers can be loaded from at once."""
    return torch.cat((x.new_full((1,), torch.nan), x.flatten()))[1:].view(x.shape)


def reversed_dimensions(x: Tensor) -> Tensor:
    order = tuple(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def every_second(x: Tensor) -> Tensor:
    return torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]


def one_for_all_images(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [odd_offset, reversed_dimensions, every_second, one_for_all_images])
@pytest.mark.parametrize("name", ["value", "locations", "weights", "grad", "all"])
def test_inputs_may_lie_anyhow_in_memory(name, layout, dtype):
    call = make(LEVELS, width=16, dtype=dtype, device=DEVICE)
    names = ("value", "locations", "weights", "grad")
    laid = {each: layout(getattr(call, each)) if name in (each, "all") else getattr(call, each) for each in names}
    call = Call(shapes=call.shapes, **laid)
    shapes = torch.tensor(call.shapes)
    inputs = call.value, shapes, *call.inputs[1:]
    found = [torch.ops.dndetr.ms_deform_attn(*inputs), *torch.ops.dndetr.ms_deform_attn_backward(call.grad, *inputs)]
    compare(found, expected(call), call)
    torch.cuda.synchronize()


def test_shapes_may_be_on_the_gpu():
    call = make(LEVELS, device=DEVICE)
    right = operator(call.value, call.shapes, *call.inputs[1:])
    for shapes in (torch.tensor(call.shapes, device=DEVICE), torch.tensor(call.shapes).int()):
        assert torch.equal(ms_deform_attn(call.value, shapes, *call.inputs[1:]), right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("far", [0.0, 1.0, -1.0, 2.0, 1e6, 1e30, -1e30])
def test_locations_far_outside_and_just_on_the_border(far, dtype):
    call = make(LEVELS, dtype=dtype, device=DEVICE)
    call.locations[:, ::2, :, :, ::3] = far
    found, wanted = results(operator, call), expected(call)
    assert found[2].isfinite().all()
    # On the border of a cell gradients of locations have two values.
    for x in (found[2], wanted[2]):
        x[:, ::2, :, :, ::3] = 0
    compare(found, wanted, call)


@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf])
def test_a_location_that_is_no_number_spoils_its_own_query_and_head_only(strange):
    call = make(LEVELS, dtype=torch.float32, device=DEVICE)
    right = results(operator, call)
    call.locations[1, 2, 1, 0, 3, 0] = strange
    found = results(operator, call)
    for i in (0, 2, 3):
        x, y = (rows[i].unflatten(-1, (2, 8)) if i == 0 else rows[i] for rows in (found, right))
        assert not x[1, 2, 1].isfinite().all()
        x[1, 2, 1] = y[1, 2, 1]
        assert torch.equal(x, y)
    assert found[1][0].isfinite().all()


def test_any_bits_as_locations_are_survived():
    call = make(LEVELS, queries=500, dtype=torch.float32, device=DEVICE)
    rng = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, call.locations.shape, dtype=torch.int32, generator=rng)
    call.locations.copy_(bits.view(torch.float32))
    results(operator, call)
    torch.cuda.synchronize()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_what_pytorchs_version_gives(precision):
    torch.manual_seed(0)
    attention = DeformableAttention(64, heads=2, levels=len(LEVELS), points=4)
    attention.init_star()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.1)
    attention.to(DEVICE)
    query = torch.randn(2, 50, 64, device=DEVICE)
    reference = torch.rand(2, 50, len(LEVELS), 4, device=DEVICE)
    memory = torch.randn(2, sum(h * w for h, w in LEVELS), 64, device=DEVICE)

    def both():
        attention.zero_grad()
        with torch.autocast(DEVICE, precision):
            result = attention(query, reference, memory, None, LEVELS)
        (result.float().square().sum() / 100).backward()
        return result, [parameter.grad for parameter in attention.parameters()]

    native.choose("torch")
    wanted, right = both()
    native.choose("native")
    found, gradients = both()
    assert found.dtype == precision
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())
    for x, y in zip(gradients, right, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, y, rtol=0.03, atol=0.03 * y.abs().max().item())


def test_it_runs_on_the_stream_it_is_called_on():
    calls = [make(LEVELS, queries=300, dtype=torch.float32, device=DEVICE, seed=seed) for seed in (0, 1)]
    right = [results(operator, call) for call in calls]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    found = []
    for stream, call in zip(streams, calls, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # what is computed on another stream would not wait for this
            late = call.map(lambda x: x * 1)
            found.append(results(operator, late))
    torch.cuda.synchronize()
    for x, y in zip(found, right, strict=True):
        for one, other in zip(x, y, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_it_runs_on_the_device_of_its_inputs():
    check(operator, make(LEVELS, dtype=torch.float32, device="cuda:1"))


def test_inputs_of_several_devices_are_refused():
    call = make(LEVELS, device=DEVICE)
    with pytest.raises(RuntimeError, match="must be on one device"):
        operator(call.value, call.shapes, call.locations.cpu(), call.weights)


def test_asked_for_determinism_pytorchs_version_answers(monkeypatch):
    call = make(LEVELS, dtype=torch.float32, device=DEVICE)
    right = ms_deform_attn_torch(call.value, call.shapes, *call.inputs[1:])
    monkeypatch.setattr(native, "missing", never)
    torch.use_deterministic_algorithms(True)
    assert torch.equal(ms_deform_attn(call.value, call.shapes, *call.inputs[1:]), right)
    with pytest.raises(RuntimeError, match="deterministic"):
        results(ms_deform_attn, call)


def test_the_operator_is_taken(monkeypatch):
    monkeypatch.setattr(deformable, "ms_deform_attn_torch", never)
    call = make(LEVELS, dtype=torch.float32, device=DEVICE)
    compare(results(ms_deform_attn, call), expected(call), call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_how_much_faster_it_is(dtype, capsys):
    """Of the encoder's size for an 800 x 1066 image. Only printed."""
    shapes = [(100, 134), (50, 67), (25, 34), (13, 17)]
    tokens = sum(h * w for h, w in shapes)
    call = make(shapes, batch=2, queries=tokens, heads=8, width=32, dtype=dtype, fine=torch.float32, device=DEVICE)

    def milliseconds(function) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for count in (3, 10):  # the first are not counted
            start.record()
            for _ in range(count):
                results(function, call)
            end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 10

    ours, theirs = milliseconds(operator), milliseconds(ms_deform_attn_torch)
    with capsys.disabled():
        print(f"\n{dtype}: operator {ours:.2f} ms, PyTorch's version {theirs:.2f} ms: {theirs / ours:.1f} times faster")
