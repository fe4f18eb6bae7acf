"""Numeric fixtures of the reference implementations: their weights under our names, their inputs as our values.

Each fixture is a folder of `../shared/official` beside the repository; its README tells the conventions. Tests skip where it
does not exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.models.denoising.noise import Draws, NoiseConfig, NoisedTargets, apply_noise
from dndetr.models.hosts import HOSTS
from dndetr.models.hosts.dab_detr import DabDetrConfig
from dndetr.models.hosts.deformable_detr import DeformableDetrConfig
from dndetr.models.structures import Feature, Images, Target

ROOT = Path(__file__).resolve().parents[2] / "shared" / "official"

SCENARIOS = ("train", "train_one_empty", "train_all_empty", "train_big_boxes")

# official name -> ours, tried in order; the first whole match wins
NAMES = [
    (r"label_enc\.(.*)", r"label.table.\1"),
    (r"refpoint_embed\.weight", "anchors"),
    (r"tgt_embed\.weight", "content"),
    (r"transformer\.patterns\.weight", "patterns.table"),
    (r"transformer\.level_embed", "neck.level"),
    (r"class_embed\.(\d+)\.(.*)", r"heads.cls.\1.\2"),
    (r"class_embed\.(.*)", r"heads.cls.0.\1"),
    (r"bbox_embed\.(\d+)\.(layers.*)", r"heads.box.\1.\2"),
    (r"bbox_embed\.(layers.*)", r"heads.box.0.\1"),
    (r"input_proj\.(\d+)\.0\.(.*)", r"neck.project.\1.conv.\2"),
    (r"input_proj\.(\d+)\.1\.(.*)", r"neck.project.\1.norm.\2"),
    (r"input_proj\.(weight|bias)", r"project.\1"),
    (r"transformer\.reference_points\.(.*)", r"decoder.locate.point.\1"),
]
DENSE_ENCODER = [(r"(encoder)\.query_scale\.(.*)", r"\1.position_scale.\2")]
DENSE_DECODER = [
    (r"decoder\.ref_point_head\.(.*)", r"decoder.anchor_position.\1"),
    (r"decoder\.query_scale\.(.*)", r"decoder.content_scale.\1"),
    (r"decoder\.ref_anchor_head\.(.*)", r"decoder.reference_size.\1"),
    (r"(decoder.layers.\d+)\.sa_([qk])content_proj\.(.*)", r"\1.self_content.\2.\3"),
    (r"(decoder.layers.\d+)\.sa_([qk])pos_proj\.(.*)", r"\1.self_position.\2.\3"),
    (r"(decoder.layers.\d+)\.sa_v_proj\.(.*)", r"\1.self_content.v.\2"),
    (r"(decoder.layers.\d+)\.self_attn.out_proj\.(.*)", r"\1.self_content.out.\2"),
    (r"(decoder.layers.\d+)\.ca_([qk])content_proj\.(.*)", r"\1.cross_content.\2.\3"),
    (r"(decoder.layers.\d+)\.ca_v_proj\.(.*)", r"\1.cross_content.v.\2"),
    (r"(decoder.layers.\d+)\.(?:cross_attn.out_proj|ca_out_v_proj)\.(.*)", r"\1.cross_content.out.\2"),
    (r"(decoder.layers.\d+)\.ca_kpos_proj\.(.*)", r"\1.cross_position.k.\2"),
    (r"(decoder.layers.\d+)\.ca_qpos_sine_proj\.(.*)", r"\1.cross_position.q.\2"),
    (r"(decoder.layers.\d+)\.ca_qpos_proj\.(.*)", r"\1.first_position.\2"),
    (r"(decoder.layers.\d+)\.lvl_attn\.(.*)", r"\1.level_weights.\2"),
]
DEFORMABLE_DECODER = [
    (r"decoder\.ref_point_head\.(.*)", r"decoder.locate.embed.\1"),
    (r"decoder\.query_scale\.(.*)", r"decoder.locate.content_scale.\1"),
    (r"(decoder.layers.\d+)\.self_attn\.(.*)", r"\1.self_attention.\2"),
    (r"(decoder.layers.\d+)\.norm1\.(.*)", r"\1.norm2.\2"),  # officially norm1 follows the cross-attention
    (r"(decoder.layers.\d+)\.norm2\.(.*)", r"\1.norm1.\2"),
    (r"(decoder.layers.\d+)\.cross_attn\.(.*)", r"\1.cross_attention.\2"),
]
LAYERS = [
    (r"(encoder.layers.\d+)\.self_attn\.(.*)", r"\1.attention.\2"),
    (r"(encoder.layers.\d+)\.norm1\.(.*)", r"\1.norm.\2"),
    (r"(encoder.layers.\d+)\.norm2\.(.*)", r"\1.feed_forward.norm.\2"),
    (r"(decoder.layers.\d+)\.norm3\.(.*)", r"\1.feed_forward.norm.\2"),
    (r"(.*layers.\d+)\.(linear\d|activation)\.(.*)", r"\1.feed_forward.\2.\3"),
]
ATTENTION = [("sampling_offsets", "offsets"), ("attention_weights", "weights"), ("value_proj", "value"),
             ("output_proj", "out"), ("out_proj", "out")]  # fmt: skip


def rename(name: str, dense_decoder: bool) -> str:
    """An official parameter name to ours."""
    rules = NAMES + DENSE_ENCODER + (DENSE_DECODER if dense_decoder else DEFORMABLE_DECODER) + LAYERS
    bare = name if name.startswith(("transformer.level_embed", "transformer.patterns", "transformer.reference")) else (
        name.removeprefix("transformer."))  # fmt: skip
    for pattern, ours in rules:
        if re.fullmatch(pattern, bare):
            bare = re.sub(pattern, ours, bare)
            break
    for theirs, ours in ATTENTION:
        bare = bare.replace(f"attention.{theirs}.", f"attention.{ours}.")
    return bare


def translate(weights: dict[str, Tensor], dense_decoder: bool, queries_width: int | None = None) -> dict[str, Tensor]:
    """An official state dict, or gradients, under our names: packed projections are split in q, k and v."""
    state = {}
    for name, tensor in weights.items():
        if re.match(r"transformer\.decoder\.(bbox|class)_embed", name):
            continue  # listed a second time
        if name == "query_embed.weight":
            state["position"], state["content"] = tensor.chunk(2, dim=1)
        elif packed := re.fullmatch(r"(.*)in_proj_(weight|bias)", rename(name, dense_decoder)):
            for key, part in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{packed[1]}{key}.{packed[2]}"] = part
        else:
            state[rename(name, dense_decoder)] = tensor
    return state


class StoredFeatures(nn.Module):
    """Stands for the backbone: gives the fixture's features."""

    def __init__(self, features: list[Tensor], strides: Sequence[int] | None = None):
        super().__init__()
        self.features, self.strides = features, strides
        self.channels = [f.shape[1] for f in features]

    def forward(self, images: Images) -> list[Feature]:
        return [Feature(f, nearest(images.padding, f.shape[-2:])) for f in self.features]


def nearest(padding: Tensor, size: tuple[int, int]) -> Tensor:
    """As the reference shrinks it: on canvases that are no multiple of the stride, by other pixels than the features' own."""
    return F.interpolate(padding[None].float(), size=tuple(size)).to(torch.bool)[0]


class Fixture:
    """One official model: our detector with its weights, its inputs and its outputs."""

    ours: tuple[str, ...] = ()  # beginnings of names of what we have and the reference has not

    def __init__(self, name: str):
        self.folder = ROOT / name
        if not self.folder.is_dir():
            pytest.skip(f"the reference numbers of {name} are not here")
        self.config = json.loads((self.folder / "config.json").read_text())
        self.inputs = load_file(self.folder / "inputs.safetensors")
        self.num_classes = self.config["num_classes"]
        host = self.host_config()
        features = [self.inputs[f"feature.{i}"] for i in range(len(self.config["channels"]))]
        backbone = StoredFeatures(features, self.config.get("strides"))
        _, build = HOSTS[host.name]
        self.model = build(host, backbone=backbone, num_classes=self.num_classes)
        self.state = self.translate(load_file(self.folder / "weights.safetensors"))
        shared = self.model.heads.shared
        self.state = {k: v for k, v in self.state.items() if not (shared and re.match(r"heads\.(cls|box)\.[1-9]", k))}
        missing, unexpected = self.model.load_state_dict(self.state, strict=False)
        assert not unexpected and all(name.startswith(self.ours) for name in missing), (missing, unexpected)
        self.images = Images(torch.zeros(2, 3, *self.inputs["image_mask"].shape[-2:]), self.inputs["image_mask"])

    def translate(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official weights, or what belongs to them, under our names."""
        dense = self.config["model"].startswith("dn_dab_detr") or "encoder_only" in self.config["model"]
        return translate(weights, dense)

    def host_config(self) -> DabDetrConfig | DeformableDetrConfig:
        c = self.config
        sizes = dict(queries=c["num_queries"], hidden=c["hidden_dim"], heads=c["nheads"], ffn=c["dim_feedforward"],
                     encoder_layers=c["enc_layers"], decoder_layers=c["dec_layers"])  # fmt: skip
        if c["model"].startswith("dn_dab_detr"):
            return DabDetrConfig(patterns=c["num_patterns"], **sizes)
        sizes |= dict(levels=c["num_feature_levels"], points=c["enc_n_points"])
        if "encoder_only" in c["model"]:
            return DeformableDetrConfig(decoder="dense", patterns=c["num_patterns"], activation="prelu", **sizes)
        sizes |= dict(decoder_points=c["dec_n_points"])
        if c["model"].startswith("dn_"):
            return DeformableDetrConfig(**sizes)
        return DeformableDetrConfig(query="point", refine=c["with_box_refine"], **sizes)

    def evaluation(self) -> dict[str, Tensor]:
        return load_file(self.folder / "eval.safetensors")

    def scenario(self, name: str) -> SimpleNamespace:
        """A training step: targets, expected tensors and expected losses."""
        if not (self.folder / f"{name}.json").exists():
            pytest.skip(f"{self.folder.name} has no scenario {name}")
        targets = [
            Target(self.inputs[f"{name}.targets.{b}.labels"], self.inputs[f"{name}.targets.{b}.boxes"], image_id=b)
            for b in range(2)
        ]
        expected = load_file(self.folder / f"{name}.safetensors")
        return SimpleNamespace(targets=targets, expected=expected, **json.loads((self.folder / f"{name}.json").read_text()))

    def noised(self, scenario: SimpleNamespace) -> NoisedTargets:
        """Our noise from the draws that the reference recorded (all boxes of a group, image after image)."""
        groups, counts = self.config["scalar"], [len(t.labels) for t in scenario.targets]
        noise = NoiseConfig(groups, *[self.config["box_noise_scale"]] * 2, self.config["label_noise_scale"])
        u, replacement, box = (scenario.expected[f"draw.{i}"] for i in range(3))
        known = torch.cat([t.labels for t in scenario.targets]).repeat(groups)
        flipped = u < noise.label_flip
        offset = torch.zeros_like(known)
        offset[flipped] = (replacement - known[flipped]) % self.num_classes  # it may draw the same class again
        per_image = zip(*(x.view(groups, -1, *x.shape[1:]).split(counts, 1) for x in (u, offset, box)), strict=True)
        return apply_noise(scenario.targets, [Draws(*draws) for draws in per_image], noise, self.num_classes)
