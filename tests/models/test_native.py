"""The native operator on the CPU, held to PyTorch's version of it: what it computes, from whatever it is given."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dndetr.models import native
from dndetr.models.deformable import ms_deform_attn, ms_deform_attn_torch
from tests.models.sampling import DTYPES, FEW, MANY, Call, check, compare, expected, make, operator, results

pytestmark = pytest.mark.usefixtures("restored")
FLOATS = [torch.float32, torch.float64]


@pytest.fixture(autouse=True, scope="module")
def built():
    """Without the operator every test here would compare PyTorch's version with itself."""
    assert native.missing("cpu") is None


# What it computes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("width", [1, 2, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 64, 100])
def test_any_width_of_a_head(width, sizes, dtype):
    check(operator, make(**sizes, width=width, dtype=dtype))


@pytest.mark.parametrize("sizes", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize(("dtype", "fine"), DTYPES, ids=str)
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
    dtype, fine = data.draw(st.sampled_from(DTYPES), label="dtypes")
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
