"""The native operator in company of the rest of PyTorch: registration, threads, and who chooses it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import library as torch_library
from torch import nn

from dndetr.models import deformable, native
from dndetr.models.deformable import DeformableAttention, ms_deform_attn, ms_deform_attn_torch
from tests.models.sampling import DTYPES, FEW, MANY, check, make, never, operator, results

pytestmark = pytest.mark.usefixtures("restored")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def built():
    """Without the operator every test here would compare PyTorch's version with itself."""
    assert native.missing("cpu") is None


# Registration


@pytest.mark.parametrize(("dtype", "fine"), DTYPES[:5], ids=str)
@pytest.mark.parametrize("sizes", [MANY, FEW, {"shapes": [(2, 2)], "queries": 0}], ids=["many", "few", "none"])
def test_pytorch_finds_nothing_wrong_with_its_registration(sizes, dtype, fine):
    call = make(**sizes, dtype=dtype, fine=fine)
    shapes = torch.tensor(call.shapes)
    inputs = [x.requires_grad_() for x in call.inputs]
    torch_library.opcheck(torch.ops.dndetr.ms_deform_attn, (inputs[0], shapes, *inputs[1:]))
    plain = [x.detach() for x in inputs]
    torch_library.opcheck(torch.ops.dndetr.ms_deform_attn_backward, (call.grad, plain[0], shapes, *plain[1:]))


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
from dndetr.models import native

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
