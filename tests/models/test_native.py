"""The native operator on the CPU, held to PyTorch's version of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import deformable, native
from models.deformable import DeformableAttention, ms_deform_attn, ms_deform_attn_torch
from tests.models.sampling import Call, check, compare, expected, make, results

ROOT = Path(__file__).parents[2]
PAIRS = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.bfloat16),
]
FLOATS = [torch.float32, torch.float64]
# The kernels lay tokens side by side where they are read several times each, and read them in place otherwise.
MANY = {"shapes": [(3, 4), (2, 2)], "queries": 19}
FEW = {"shapes": [(13, 17), (7, 9)], "queries": 3}


@pytest.fixture(autouse=True, scope="module")
def built():
    """Without the operator every test here would compare PyTorch's version with itself."""
    assert native.missing("cpu") is None


@pytest.fixture(autouse=True)
def restored():
    choice, threads = native.chosen(), torch.get_num_threads()
    yield
    native.choose(choice)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def operator(value, shapes, locations, weights):
    return torch.ops.dndetr.ms_deform_attn(value, torch.as_tensor(shapes), locations, weights)


def never(*args):
    raise AssertionError("this was not to be called")


# What it computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("width", [1, 2, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 64, 100])
def test_any_width_of_a_head(width, sizes, dtype):
    check(operator, make(**sizes, width=width, dtype=dtype))


@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize(("dtype", "fine"), PAIRS, ids=str)
def test_any_dtypes_with_gradients_in_their_own(dtype, fine, sizes):
    for width in (3, 16, 40):
        check(operator, make(**sizes, width=width, dtype=dtype, fine=fine))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_long_sums_of_halves_are_rounded_once(dtype):
    call = make([(2, 2)], queries=400, points=16, width=16, dtype=dtype, fine=torch.float32)
    # 6,400 points read the four tokens, 64 a query.
    check(operator, call)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("queries", [1, 2, 5, 37])
@pytest.mark.parametrize(
    ("levels", "points"),
    [(levels, points) for levels in (1, 3, 4, 5) for points in (1, 2, 3, 4, 8)]
    # A vector holds 8 or 16 points, and 4 vectors are computed at once.
    + [(1, n) for n in (7, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)]
    + [(3, 5), (5, 7), (7, 9), (2, 12), (8, 2), (16, 1), (17, 1)],
)
def test_any_number_of_levels_and_points(levels, points, queries, dtype):
    shapes = [(9, 6), (5, 7), (4, 3), (2, 2), (1, 1), (1, 5), (6, 1)]
    check(operator, make((shapes * 3)[:levels], queries=queries, points=points, width=6, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("heads", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [0, 1, 3, 5])
def test_any_batch_and_number_of_heads(batch, heads, sizes, dtype):
    check(operator, make(**sizes, batch=batch, heads=heads, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [{"queries": 0}, {"heads": 0}, {"points": 0}, {"width": 0}], ids=str)
def test_nothing_to_do_gives_zeros(sizes, dtype):
    call = make([(3, 4), (2, 2)], **sizes, dtype=dtype)
    for x in results(operator, call):
        assert not x.count_nonzero()
    # Memory that an earlier call left behind must not show.
    torch.use_deterministic_algorithms(True)  # fills what is empty with NaN
    for x, like in zip(results(operator, call), (call.grad, *call.inputs), strict=True):
        torch.testing.assert_close(x, torch.zeros_like(like))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_sizes(data):
    whole = st.integers
    shapes = data.draw(st.lists(st.tuples(whole(1, 9), whole(1, 9)), min_size=1, max_size=4), label="shapes")
    drawn = {
        "batch": data.draw(whole(1, 3), label="batch"),
        "queries": data.draw(whole(1, 40), label="queries"),
        "heads": data.draw(whole(1, 4), label="heads"),
        "width": data.draw(whole(1, 70), label="width"),
        "points": data.draw(whole(1, 10), label="points"),
        "seed": data.draw(whole(0, 1000), label="seed"),
    }
    dtype, fine = data.draw(st.sampled_from(PAIRS), label="dtypes")
    check(operator, make(shapes, **drawn, dtype=dtype, fine=fine))


@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
def test_each_input_alone_has_its_gradient(sizes):
    call = make(**sizes)
    for i, wanted in enumerate(expected(call)[1:]):
        inputs = list(call.inputs)
        inputs[i] = inputs[i].clone().requires_grad_()
        result = operator(inputs[0], call.shapes, *inputs[1:])
        torch.testing.assert_close(torch.autograd.grad(result, inputs[i], call.grad)[0], wanted)


@pytest.mark.parametrize("function", [ms_deform_attn, operator], ids=["public", "operator"])
@pytest.mark.parametrize("sizes", [MANY, FEW | {"shapes": [(5, 5)]}], ids=["many", "few"])
def test_finite_differences_agree(function, sizes):
    call = make(**sizes | {"queries": 2}, batch=1, width=3, points=2)
    inputs = [x.requires_grad_() for x in call.inputs]
    assert torch.autograd.gradcheck(lambda v, p, w: function(v, call.shapes, p, w), inputs)


# How its inputs lie in memory


def odd_offset(x: Tensor) -> Tensor:
    return torch.cat((x.new_full((1,), torch.nan), x.flatten()))[1:].view(x.shape)


def every_second(x: Tensor) -> Tensor:
    return torch.stack((x, torch.full_like(x, torch.nan)), dim=-1)[..., 0]


def inside_of_more(x: Tensor) -> Tensor:
    return nn.functional.pad(x, (3, 2) * min(x.dim(), 2), value=torch.nan)[(..., *[slice(3, -2)] * min(x.dim(), 2))]


def first_dimension_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def reversed_dimensions(x: Tensor) -> Tensor:
    order = tuple(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def one_for_all_images(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def one_for_all_channels(x: Tensor) -> Tensor:
    return x[..., :1].expand_as(x)


def one_number(x: Tensor) -> Tensor:
    return x.flatten()[0].expand_as(x)


LAYOUTS = [
    odd_offset,
    every_second,
    inside_of_more,
    first_dimension_last,
    reversed_dimensions,
    one_for_all_images,
    one_for_all_channels,
    one_number,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_changes_no_bit(layout, sizes, dtype):
    call = make(**sizes, width=20, dtype=dtype)
    every = [{name} for name in ("value", "locations", "weights", "grad")]
    for changed in [*every, set.union(*every)]:
        laid = Call(shapes=call.shapes, **{
            name: layout(getattr(call, name)) if name in changed else getattr(call, name)
            for name in ("value", "locations", "weights", "grad")
        })  # fmt: skip
        plain = laid.map(lambda x: x.clone(memory_format=torch.contiguous_format))
        for x, y in zip(results_in_place(laid), results_in_place(plain), strict=True):
            assert torch.equal(x, y)


def results_in_place(call: Call) -> list[Tensor]:
    """Result and gradients without making new leaves, which a detach would keep in their layout anyway: by the operators."""
    shapes = torch.tensor(call.shapes)
    result = torch.ops.dndetr.ms_deform_attn(call.value, shapes, *call.inputs[1:])
    return [result, *torch.ops.dndetr.ms_deform_attn_backward(call.grad, call.value, shapes, *call.inputs[1:])]


def test_shapes_may_be_of_any_integers_and_lie_anyhow():
    call = make(**MANY)
    right = operator(call.value, call.shapes, *call.inputs[1:])
    plain = torch.tensor(call.shapes)
    for shapes in (plain.int(), plain.short(), plain.T.contiguous().T, every_second(plain.double()).long()):
        assert torch.equal(operator(call.value, shapes, *call.inputs[1:]), right)
        assert torch.equal(ms_deform_attn(call.value, shapes, *call.inputs[1:]), right)
    assert torch.equal(ms_deform_attn(call.value, call.shapes, *call.inputs[1:]), right)


def test_a_summed_result_has_an_expanded_gradient():
    call = make(**MANY)
    value = call.value.requires_grad_()
    operator(value, call.shapes, *call.inputs[1:]).sum().backward()
    wanted = expected(Call(value.detach(), call.shapes, *call.inputs[1:], torch.ones_like(call.grad)))
    torch.testing.assert_close(value.grad, wanted[1])


def test_inputs_are_left_alone():
    call = make(**MANY)
    before = call.map(Tensor.clone)
    results(operator, call)
    assert all(torch.equal(x, y) for x, y in zip((*call.inputs, call.grad), (*before.inputs, before.grad), strict=True))


# Strange numbers


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("far", [0.0, 1.0, -0.0, 0.5, -1.0, 2.0, 3.0, -1e3, 1e6, 1e30, -1e30, 1e-30])
def test_locations_far_outside_and_just_on_the_border(far, sizes, dtype):
    call = make(**sizes, dtype=dtype)
    call.locations[:, ::2, :, :, ::3] = far
    call.locations[:, 1, :, :, 1, 1] = far  # the other coordinate is an ordinary one
    found, wanted = results(operator, call), expected(call)
    assert found[2].isfinite().all()
    # On the border of a cell gradients of locations have two values.
    for x in (found[2], wanted[2]):
        x[:, ::2, :, :, ::3] = x[:, 1, :, :, 1] = 0
    compare(found, wanted, call)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf])
def test_a_location_that_is_no_number_spoils_its_own_query_and_head_only(strange, sizes, dtype):
    call = make(**sizes, dtype=dtype)
    right = results(operator, call)
    for coordinate in (0, 1):
        changed = call.map(Tensor.clone)
        changed.locations[1, 2, 1, 0, 3, coordinate] = strange
        found = results(operator, changed)
        rows = [x.unflatten(-1, call.value.shape[2:]) if i == 0 else x for i, x in enumerate(found)]
        assert rows[0][1, 2, 1].isnan().all()
        assert rows[2][1, 2, 1, 0, 3].isnan().any()
        assert rows[3][1, 2, 1, 0, 3].isnan()
        for i, name in ((0, "result"), (2, "locations"), (3, "weights")):
            others = torch.ones(rows[i].shape[:3], dtype=torch.bool)
            others[1, 2, 1] = False
            wanted = right[0].unflatten(-1, call.value.shape[2:]) if i == 0 else right[i]
            assert torch.equal(rows[i][others], wanted[others]), name
        # NaN reaches no other image and no other head.
        assert found[1][0].isfinite().all()
        assert found[1][1, :, 0].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
def test_any_bits_as_locations_are_survived(sizes, dtype):
    call = make(**sizes | {"queries": 400}, width=5, points=3, dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    bits, least = (torch.int32, -(2**31)) if dtype == torch.float32 else (torch.int64, -(2**63))
    strange = torch.randint(least, -(least + 1), call.locations.shape, dtype=bits, generator=rng).view(dtype)
    call.locations.copy_(strange)
    assert not call.locations.isfinite().all()  # some are NaN, others too large or small for anything
    for x in results(operator, call):
        assert x.numel()
    wanted = ms_deform_attn_torch(call.value, call.shapes, *call.inputs[1:])
    found = operator(call.value, call.shapes, *call.inputs[1:])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
def test_tokens_that_nothing_samples_may_hold_anything(sizes, strange):
    """Padding, for example; though points outside of the level are near."""
    call = make(**sizes)
    (rows, columns), rest = call.shapes[0], call.shapes[1:]
    sides = torch.tensor([(w, h) for h, w in call.shapes], dtype=torch.float64)
    pixels = call.locations * sides[:, None] - 0.5
    pixels[..., 0, :, 0] += (pixels[..., 0, :, 0] > columns - 3) * -3.0  # nothing near the last column of the first level
    pixels[..., 0, :, 0] = pixels[..., 0, :, 0].clamp(max=columns - 2.5)
    call.locations.copy_((pixels + 0.5) / sides[:, None])
    right = results(operator, call)
    spoiled = call.map(Tensor.clone)
    last_column = torch.arange(rows) * columns + columns - 1
    spoiled.value[:, last_column] = strange
    assert rest  # the second level is sampled everywhere
    for x, y in zip(results(operator, spoiled), right, strict=True):
        assert torch.equal(x, y)


# In company of the rest of PyTorch


@pytest.mark.parametrize(("dtype", "fine"), PAIRS[:5], ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW, {"shapes": [(2, 2)], "queries": 0}], ids=["many", "few", "none"])
def test_pytorch_finds_nothing_wrong_with_its_registration(sizes, dtype, fine):
    call = make(**sizes, dtype=dtype, fine=fine)
    shapes = torch.tensor(call.shapes)
    inputs = [x.requires_grad_() for x in call.inputs]
    torch.library.opcheck(torch.ops.dndetr.ms_deform_attn, (inputs[0], shapes, *inputs[1:]))
    plain = [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.dndetr.ms_deform_attn_backward, (call.grad, plain[0], shapes, *plain[1:]))


class Sampler(nn.Module):
    """The public function between other work."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes

    def forward(self, value, locations, weights):
        return ms_deform_attn(value * 2, self.shapes, locations, weights.softmax(-1)).tanh()


def test_torch_compile_keeps_results_and_gradients(monkeypatch):
    monkeypatch.setattr(deformable, "ms_deform_attn_torch", never)
    call = make(**MANY, dtype=torch.float32)
    module = Sampler(call.shapes)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    wanted = results(lambda value, _, *others: module(value, *others), call)
    found = results(lambda value, _, *others: compiled(value, *others), call)
    torch.compiler.reset()
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_export_keeps_results(dynamic):
    call = make(**MANY, dtype=torch.float32)
    module = Sampler(call.shapes)
    batch, queries = torch.export.Dim("batch", max=64), torch.export.Dim("queries", max=4096)
    moving = ({0: batch}, {0: batch, 1: queries}, {0: batch, 1: queries}) if dynamic else None
    exported = torch.export.export(module, call.inputs, dynamic_shapes=moving)
    assert "dndetr.ms_deform_attn" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(*call.inputs), module(*call.inputs))
    if dynamic:
        other = make(**MANY | {"queries": 31}, batch=3, dtype=torch.float32)
        torch.testing.assert_close(exported.module()(*other.inputs), module(*other.inputs))


@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
def test_autocast_gives_what_pytorchs_version_gives(sizes):
    torch.manual_seed(0)
    shapes = sizes["shapes"]
    attention = DeformableAttention(16, heads=2, levels=len(shapes), points=4)
    attention.init_star()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    query = torch.randn(2, sizes["queries"], 16)
    reference, memory = torch.rand(2, sizes["queries"], len(shapes), 4), torch.randn(2, sum(h * w for h, w in shapes), 16)

    def both():
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = attention(query, reference, memory, None, shapes)
        result.float().square().sum().backward()
        return result, [parameter.grad for parameter in attention.parameters()]

    native.choose("torch")
    wanted, right = both()
    native.choose("native")
    found, gradients = both()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())
    for x, y in zip(gradients, right, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, y, rtol=0.02, atol=0.02 * y.abs().max().item())


def test_inference_mode_gives_the_same():
    call = make(**MANY)
    right = operator(call.value, call.shapes, *call.inputs[1:])
    with torch.inference_mode():
        assert torch.equal(ms_deform_attn(call.value, call.shapes, *call.inputs[1:]), right)


def test_a_second_derivative_is_refused_rather_than_0():
    call = make(**MANY)
    inputs = [x.requires_grad_() for x in call.inputs]
    result = operator(inputs[0], call.shapes, *inputs[1:]).square().sum()
    first = torch.autograd.grad(result, inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(first[0].square().sum(), inputs)


def test_a_changed_input_is_noticed_in_the_backward_pass():
    call = make(**MANY)
    value = call.value.requires_grad_()
    result = operator(value, call.shapes, *call.inputs[1:])
    call.weights.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


VALUE, SHAPES, LOCATIONS, WEIGHTS = (2, 16, 3, 4), [(3, 4), (2, 2)], (2, 5, 3, 2, 6, 2), (2, 5, 3, 2, 6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": torch.rand(2, 16, 12)}, r"value must be \(B, S, H, D\), got \[2, 16, 12\]"),
        ({"value": torch.ones(VALUE, dtype=torch.int64)}, "value must be float32, float64, bfloat16 or float16, got Long"),
        ({"value": torch.ones(VALUE, dtype=torch.complex64)}, "value must be float32, float64, bfloat16 or float16"),
        ({"value": torch.rand(2, 15, 3, 4)}, "the levels have 16 pixels, but value has 15 tokens"),
        ({"value": torch.rand(2, 16, 1, 4)}, r"sampling_locations must be .* with B 2, H 1 and L 2, got \[2, 5, 3, 2, 6, 2\]"),
        ({"value": torch.rand(1, 16, 3, 4)}, r"sampling_locations must be .* with B 1, H 3 and L 2"),
        ({"shapes": torch.tensor([3, 4])}, r"spatial_shapes must be \(L, 2\) with L > 0, got \[2\]"),
        ({"shapes": torch.tensor([[3, 4, 1]])}, r"spatial_shapes must be \(L, 2\)"),
        ({"shapes": torch.empty(0, 2)}, r"spatial_shapes must be \(L, 2\) with L > 0, got \[0, 2\]"),
        ({"shapes": torch.tensor([[3, 4], [0, 2]])}, "level 1 is 0 x 2, it must have pixels"),
        ({"shapes": torch.tensor([[-3, -4], [2, 2]])}, "level 0 is -3 x -4, it must have pixels"),
        ({"shapes": torch.tensor([[3, 4], [2, 3]])}, "the levels have 18 pixels, but value has 16 tokens"),
        ({"shapes": torch.tensor([[4, 4]])}, r"sampling_locations must be .* L 1, got"),
        ({"locations": torch.rand(WEIGHTS)}, r"sampling_locations must be \(B, Q, H, L, P, 2\)"),
        ({"locations": torch.rand(2, 5, 3, 2, 6, 3)}, r"sampling_locations must be \(B, Q, H, L, P, 2\)"),
        ({"weights": torch.rand(2, 4, 3, 2, 6)}, r"attention_weights must be \(B, Q, H, L, P\) like .* got \[2, 4, 3, 2, 6\]"),
        ({"weights": torch.rand(2, 5, 3, 12)}, r"attention_weights must be \(B, Q, H, L, P\)"),
        ({"weights": torch.rand(2, 5, 3, 2, 5)}, r"attention_weights must be \(B, Q, H, L, P\)"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, dict) else None,
)
def test_a_wrong_call_is_told_what_is_wrong(change, words):
    inputs = {
        "value": torch.rand(VALUE),
        "shapes": torch.tensor(SHAPES),
        "locations": torch.rand(LOCATIONS),
        "weights": torch.rand(WEIGHTS),
    }
    torch.ops.dndetr.ms_deform_attn(*inputs.values())
    inputs |= change
    with pytest.raises(RuntimeError, match=words):
        torch.ops.dndetr.ms_deform_attn(*inputs.values())
    with pytest.raises(RuntimeError, match=words):
        torch.ops.dndetr.ms_deform_attn_backward(torch.rand(2, 5, 12), *inputs.values())


def test_a_gradient_of_another_shape_than_the_result_is_refused():
    call = make(**MANY)
    shapes = torch.tensor(call.shapes)
    for wrong in (torch.cat((call.grad, call.grad), dim=1), call.grad.unflatten(-1, (2, 8))):
        with pytest.raises(RuntimeError, match="the gradient must be"):
            torch.ops.dndetr.ms_deform_attn_backward(wrong, call.value, shapes, *call.inputs[1:])


# Threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
def test_the_number_of_threads_changes_no_bit(sizes, dtype):
    call = make(**sizes, batch=3, heads=3, width=20, dtype=dtype)
    alone = repeated = None
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        found = results(operator, call)
        alone = alone or found
        repeated = [torch.equal(x, y) for x, y in zip(found, alone, strict=True)]
        assert all(repeated), threads


SHARED = """
import os, sys
import torch
from models import native

assert native.missing("cpu") is None
torch.set_num_threads(2)
value, shapes, grad = torch.ones(1, 4, 2, 3), torch.tensor([[2, 2]]), torch.ones(1, 1, 6)
rest = torch.zeros(1, 1, 2, 1, 1, 2), torch.zeros(1, 1, 2, 1, 1)
before = len(os.listdir("/proc/self/task"))
if sys.argv[1] == "forward":
    torch.ops.dndetr.ms_deform_attn(value, shapes, *rest)
else:
    torch.ops.dndetr.ms_deform_attn_backward(grad, value, shapes, *rest)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_two_heads_are_shared_out_to_two_threads(way):
    """Without -fopenmp PyTorch's parallel_for is silently serial. The team's second thread starts when it is first needed."""
    command = [sys.executable, "-c", SHARED, way]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1", done.stderr


# The choice


def test_told_to_take_pytorch_it_never_asks_for_the_operator(monkeypatch):
    monkeypatch.setattr(native, "missing", never)
    native.choose("torch")
    call = make(**MANY)
    right = ms_deform_attn_torch(call.value, call.shapes, *call.inputs[1:])
    assert torch.equal(ms_deform_attn(call.value, call.shapes, *call.inputs[1:]), right)


@pytest.mark.parametrize("choice", ["auto", "native"])
def test_where_there_is_an_operator_it_is_taken(choice, monkeypatch):
    monkeypatch.setattr(deformable, "ms_deform_attn_torch", never)
    native.choose(choice)
    check(ms_deform_attn, make(**MANY))


def test_determinism_is_no_reason_to_leave_it_on_a_cpu(monkeypatch):
    monkeypatch.setattr(deformable, "ms_deform_attn_torch", never)
    torch.use_deterministic_algorithms(True)
    check(ms_deform_attn, make(**MANY))


def test_without_an_operator_pytorch_does_the_work(monkeypatch):
    monkeypatch.setattr(native, "missing", lambda device: ("the operator for cpu cannot be built: no luck", "no luck at all"))
    call = make(**MANY)
    right = ms_deform_attn_torch(call.value, call.shapes, *call.inputs[1:])
    native.choose("auto")
    assert torch.equal(ms_deform_attn(call.value, call.shapes, *call.inputs[1:]), right)
    native.choose("native")
    with pytest.raises(
        native.OperatorError, match="op=native, but the operator for cpu cannot be built: no luck; mend"
    ) as found:
        ms_deform_attn(call.value, call.shapes, *call.inputs[1:])
    assert "\n" not in str(found.value)


def test_a_device_without_operator_is_no_reason_for_words(caplog):
    native.choose("auto")
    call = make(**MANY).map(lambda x: x.to("meta"))
    assert ms_deform_attn(call.value, call.shapes, *call.inputs[1:]).shape == call.grad.shape
    assert not caplog.records
