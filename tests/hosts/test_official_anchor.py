"""Parity of Anchor DETR with its reference: same weights and inputs, same memory, outputs, losses and gradients."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.hosts.anchor_detr import AnchorDetrConfig, LevelAttention
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.neck import Projection
from dndetr.models.transformer import Attention
from tests.hosts.test_official import as_if_unpadded, check_gradients, check_losses, check_matches, close
from tests.hosts.test_official_detr import check_detections
from tests.official import SCENARIOS, Fixture

FIXTURES = ["anchor_detr", "anchor_detr_mha", "anchor_detr_grid_3level"]

# official name, without `transformer.`, -> ours, all that match one after the other
NAMES = [
    (r"^input_proj\.(\d+)\.0\.", r"project.project.\1.conv."),
    (r"^input_proj\.(\d+)\.1\.", r"project.project.\1.norm."),
    (r"^adapt_pos1d\.0\.", "places.one.layers.0."),
    (r"^adapt_pos1d\.2\.", "places.one.layers.1."),
    (r"^adapt_pos2d\.0\.", "places.both.layers.0."),
    (r"^adapt_pos2d\.2\.", "places.both.layers.1."),
    (r"^position\.weight$", "points"),
    (r"^pattern\.weight$", "patterns.table"),
    (r"^level_embed\.weight$", "encoder.level"),
    (r"^class_embed\.(\d+)\.", r"heads.cls.\1."),
    (r"^bbox_embed\.(\d+)\.", r"heads.box.\1."),
    (r"^encoder_layers\.(\d+)\.", r"encoder.layers.\1."),
    (r"^encoder_layers_level\.(\d+)\.", r"encoder.level_layers.\1."),
    (r"^decoder_layers\.(\d+)\.", r"decoder.layers.\1."),
    (r"^(encoder.*)\.self_attn(_level)?\.", r"\1.attention."),
    (r"^(encoder.*)\.norm1\.", r"\1.norm."),
    (r"^(decoder.*layers\.\d+)\.norm1\.", r"\1.norm_."),  # officially norm1 follows the cross-attention
    (r"^(decoder.*layers\.\d+)\.norm2\.", r"\1.norm1."),
    (r"\.norm_\.", ".norm2."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.cross_attn\.", ".cross_attention."),
    (r"\.out_proj\.", ".out."),
    (r"\.level_fc\.", ".merge."),
    (r"\.ffn\.norm2\.", ".feed_forward.norm."),
    (r"\.ffn\.", ".feed_forward."),
]
STACKED = {3: ("q", "k", "v"), 5: ("q_row", "q_column", "k_row", "k_column", "v")}


def rename(name: str) -> str:
    name = name.removeprefix("transformer.")
    for pattern, ours in NAMES:
        name = re.sub(pattern, ours, name)
    return name


class AnchorFixture(Fixture):
    """Anchor DETR's names and sizes. Ours also has labels, to tell objects."""

    ours = ("label.",)

    def host_config(self) -> AnchorDetrConfig:
        c = self.config
        return AnchorDetrConfig(
            queries=c["num_query_position"], patterns=c["num_query_pattern"], anchors=c["spatial_prior"],
            attention="row_column" if c["attention_type"] == "RCDA" else "plain", levels=c["num_feature_levels"],
            hidden=c["hidden_dim"], heads=c["nheads"], ffn=c["dim_feedforward"],
            encoder_layers=c["enc_layers"], decoder_layers=c["dec_layers"],
        )  # fmt: skip

    def translate(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stacked projections are cut apart, and what our detector has not got, a perceptron without use, is left out."""
        state = {}
        for name, tensor in weights.items():
            ours = rename(name)
            if stacked := re.fullmatch(r"(.*)in_proj_(weight|bias)", ours):
                keys = STACKED[len(tensor) // self.config["hidden_dim"]]
                for key, part in zip(keys, tensor.chunk(len(keys)), strict=True):
                    state[f"{stacked[1]}{key}.{stacked[2]}"] = part
            elif not (self.config["attention_type"] != "RCDA" and ours.startswith("places.one.")):
                state[ours] = tensor
        return state


def means_of_everything(tokens: Tensor, hidden: Tensor | None, dim: int) -> Tensor:
    return tokens.mean(dim)


def levels_of_the_batch(self, x: Tensor, level: Tensor) -> Tensor:
    """An official bug: a token looks at those at its place of all levels of all images of the batch."""
    found = Attention.forward(self, x.transpose(0, 1), level.repeat(len(x) // len(level), 1))
    return found.transpose(0, 1)


def image_after_image(x: Tensor, levels: int) -> Tensor:
    """Another official bug: tokens come as image 0 at every level, image 1 ..., queries as image 0, image 1, image 0 ..."""
    return x.repeat(levels, *[1] * (x.dim() - 1))


@pytest.fixture(autouse=True)
def padding_is_seen(monkeypatch):
    """The reference lets padding act, in projections and in means over rows and columns, and its levels mix the images.

    That happens in batches of several images alone; it trains with one. We do nothing of it; to compare all else, here it is
    done.
    """
    monkeypatch.setattr(Projection, "forward", as_if_unpadded)
    monkeypatch.setattr("dndetr.models.row_column.mean", means_of_everything)
    monkeypatch.setattr(LevelAttention, "forward", levels_of_the_batch)
    monkeypatch.setattr("dndetr.models.hosts.anchor_detr.for_each_level", image_after_image)


@pytest.mark.parametrize("name", FIXTURES)
def test_evaluation(name):
    fixture = AnchorFixture(name)
    expected = fixture.evaluation()
    seen = {}
    fixture.model.encoder.register_forward_hook(lambda module, args, output: seen.update(memory=output.tokens))
    with torch.no_grad():
        output = fixture.model.eval()(fixture.images)
    close(seen["memory"], expected["memory"].permute(0, 2, 3, 1), "memory")
    close(output.logits, expected["pred_logits"], "logits")
    close(output.boxes, expected["pred_boxes"], "boxes")
    check_detections(output, expected, fixture)


@pytest.mark.parametrize("scenario", SCENARIOS[:3])
@pytest.mark.parametrize("name", FIXTURES)
def test_training_step(name, scenario):
    """Outputs of every layer, matches, every loss, and the gradient of every parameter."""
    fixture = AnchorFixture(name)
    step, model = fixture.scenario(scenario), fixture.model.train()
    output = model(fixture.images)
    close(output.logits, step.expected["pred_logits"], "logits")
    close(output.boxes, step.expected["pred_boxes"], "boxes")
    matcher = Matcher(MatchConfig(*(fixture.config[f"set_cost_{x}"] for x in ("class", "bbox", "giou"))))
    check_matches(matcher(output, step.targets), step.expected)
    weights = LossConfig(*(fixture.config[f"{x}_loss_coef"] for x in ("cls", "bbox", "giou")))
    losses = Criterion(weights, matcher)(output, Wanted(step.targets), objects=sum(len(t.labels) for t in step.targets))
    check_losses(losses, step, layers=len(output.logits))
    losses.total.backward()
    check_gradients(model, step, fixture)
