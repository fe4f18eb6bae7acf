"""Parity with DETR, Conditional DETR and Group DETR, whose queries are embeddings: their weights, inputs and numbers."""

from __future__ import annotations

import re

import pytest
import torch

from dndetr.models.denoising.queries import Known
from dndetr.models.hosts.conditional_detr import ConditionalDetrConfig
from dndetr.models.hosts.detr import DetrConfig
from dndetr.training.evaluate import detect
from tests.hosts.test_contract import known, matching_part, same
from tests.hosts.test_official import check_step, close
from tests.official import SCENARIOS, Fixture, translate

NAMES = ["detr", "detr_pre_norm", "conditional_detr", "group_detr"]

# what `translate` does not know, made into what it knows
RENAMED = [(r"query_embed\.weight", "position"), (r"transformer\.decoder\.ref_point_head", "point")]
PLAIN = [  # its decoder layers are of Deformable DETR, whose norms are numbered otherwise
    (r"(decoder\.layers\.\d)\.multihead_attn", r"\1.cross_attn"),
    (r"(decoder\.layers\.\d)\.norm1", r"\1.norm0"),
    (r"(decoder\.layers\.\d)\.norm2", r"\1.norm1"),
    (r"(decoder\.layers\.\d)\.norm0", r"\1.norm2"),
]


class EmbeddingsFixture(Fixture):
    """Ours also holds what tells it objects, which these have not."""

    ours = ("label.", "place.")

    @property
    def conditional(self) -> bool:
        return self.config["model"] in ("conditional_detr", "group_detr")

    def translate(self, weights):
        renamed = {}
        for name, tensor in weights.items():
            for pattern, other in RENAMED + ([] if self.conditional else PLAIN):
                name = re.sub(pattern, other, name)
            renamed[name] = tensor
        return translate(renamed, dense_decoder=self.conditional)

    def host_config(self):
        c = self.config
        sizes = dict(queries=c["num_queries"], hidden=c["hidden_dim"], heads=c["nheads"], ffn=c["dim_feedforward"],
                     encoder_layers=c["enc_layers"], decoder_layers=c["dec_layers"], dropout=0.0)  # fmt: skip
        if not self.conditional:
            return DetrConfig(pre_norm=c["pre_norm"], **sizes)
        return ConditionalDetrConfig(groups=c.get("group_detr", 1), **sizes)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name):
    """And without being told so, one group of matching queries answers."""
    fixture, seen = EmbeddingsFixture(name), {}
    expected = fixture.evaluation()
    fixture.model.encoder.register_forward_hook(lambda module, args, output: seen.update(memory=output))
    with torch.no_grad():
        output = fixture.model.eval()(fixture.images)
    close(seen["memory"], expected["memory"].transpose(0, 1), "memory")
    close(output.logits, expected["pred_logits"], "logits")
    close(output.boxes, expected["pred_boxes"], "boxes")
    assert output.softmax is not fixture.conditional
    if fixture.conditional:
        close(output.anchors, expected["reference"], "reference points")
    check_detections(output, expected, fixture)


def check_detections(output, expected, fixture):
    """DETR keeps the best class of each query, in the queries' order; Conditional DETR the 100 best of queries x classes."""
    sizes = [tuple(size) for size in fixture.config["image_sizes"]]
    for b, found in enumerate(detect(output, sizes, top=20 if output.softmax else 100)):
        scores, order = expected[f"postprocess.{b}.scores"].sort(descending=True, stable=True)
        close(found.scores, scores, "scores")
        assert torch.equal(found.labels, expected[f"postprocess.{b}.labels"][order])
        close(found.boxes, expected[f"postprocess.{b}.boxes"][order], "boxes in pixels")


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", NAMES)
def test_training_step(name, scenario):
    """Outputs of every layer, matches of every group, every loss, and the gradient of every parameter."""
    check_step(EmbeddingsFixture(name), scenario, Known(every_group=True))


@pytest.mark.parametrize("name", NAMES)
def test_beside_denoising_queries_it_is_the_same(name):
    fixture = EmbeddingsFixture(name)
    targets = fixture.scenario("train").targets
    model = fixture.model.eval()
    with torch.no_grad():
        told, alone = model(fixture.images, known(targets)), model(fixture.images)
    same(matching_part(told), alone, rtol=1e-4, atol=1e-5)
