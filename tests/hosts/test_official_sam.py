"""Parity with SAM-DETR in its three forms: weights, inputs and numbers of its reference implementation."""

from __future__ import annotations

import re

import pytest
import torch

from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.hosts.sam_detr import SamDetrConfig
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.neck import Projection
from dndetr.models.position import encode_image
from dndetr.training.evaluate import detect
from tests.hosts.test_contract import known, matching_part, same
from tests.hosts.test_official import as_if_unpadded, check_gradients, check_losses, check_matches, close
from tests.official import SCENARIOS, Fixture, translate

NAMES = ["sam_detr", "sam_detr_smca", "sam_detr_multiscale_smca"]

# what `translate` does not know, made into what it knows; the rest it leaves as it is
RENAMED = [
    (r"query_embed\.weight", "anchors"),
    (r"(decoder\.layers\.\d)\.point1\.0", r"\1.aligner.squeeze"),
    (r"(decoder\.layers\.\d)\.attn1", r"\1.aligner.content_gate"),
    (r"(decoder\.layers\.\d)\.attn2", r"\1.aligner.position_gate"),
    (r"ca_([qk])pos_sine_proj", r"cross_position.\1"),
    *((rf"(decoder\.layers\.\d)\.point2\.{2 * i}\.", rf"\1.aligner.points.layers.{i}.") for i in range(4)),
]


class SamFixture(Fixture):
    """Ours also holds what tells it labels."""

    ours = ("label.",)

    def translate(self, weights):
        renamed = {}
        for name, tensor in weights.items():
            for pattern, other in RENAMED:
                name = re.sub(pattern, other, name)
            renamed[name] = tensor
        return translate(renamed, dense_decoder=True)

    def host_config(self):
        c = self.config
        sizes = dict(queries=c["num_queries"], hidden=c["hidden_dim"], heads=c["nheads"], ffn=c["dim_feedforward"],
                     encoder_layers=c["enc_layers"], decoder_layers=c["dec_layers"], points=c["enc_n_points"])  # fmt: skip
        return SamDetrConfig(levels=c["num_feature_levels"], smca=c["smca"], norm=False, **sizes)


@pytest.fixture
def official(monkeypatch):
    """A form by its name, in which padding acts as in the reference: where it normalises, and where boxes reach over a border.

    There the positions of padding matter as well. They mean nothing, being halves over almost nothing, and the same sum in
    another order makes others of them: so these are the reference's.
    """

    def build(name: str) -> SamFixture:
        fixture = SamFixture(name)
        stored = {x.shape[-2:]: x for key, x in fixture.evaluation().items() if key.startswith("pos.")}

        def positions(feature, *rest):
            theirs, ours = stored[feature.x.shape[-2:]].flatten(2).mT, encode_image(feature, *rest)
            return torch.where(feature.padding.flatten(1)[..., None], theirs, ours)

        monkeypatch.setattr("dndetr.models.neck.encode_image", positions)
        monkeypatch.setattr("dndetr.models.aligner.bordered", lambda x, padding: x)
        monkeypatch.setattr(Projection, "forward", as_if_unpadded)
        return fixture

    return build


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(official, name):
    fixture, seen = official(name), {}
    expected = fixture.evaluation()
    fixture.model.encoder.register_forward_hook(lambda module, args, output: seen.update(memory=output))
    with torch.no_grad():
        output = fixture.model.eval()(fixture.images)
    memory = expected["memory"] if fixture.config["multiscale"] else expected["memory"].transpose(0, 1)
    close(seen["memory"], memory, "memory")
    close(output.boxes, expected["pred_boxes"], "boxes")
    close(output.logits, expected["pred_logits"], "logits")
    close(output.anchors, expected["transformer.1"][0], "anchors")
    sizes = [tuple(size) for size in fixture.config["image_sizes"]]
    for b, found in enumerate(detect(output, sizes, top=100)):
        close(found.scores, expected[f"postprocess.{b}.scores"], "scores")
        assert torch.equal(found.labels, expected[f"postprocess.{b}.labels"])
        close(found.boxes, expected[f"postprocess.{b}.boxes"], "boxes in pixels")


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", NAMES)
def test_training_step(official, name, scenario):
    """Outputs of every layer, matches, every loss, and the gradient of every parameter."""
    fixture = official(name)
    step = fixture.scenario(scenario)
    output = fixture.model.train()(fixture.images)
    close(output.logits, step.expected["pred_logits"], "logits")
    close(output.boxes, step.expected["pred_boxes"], "boxes")
    matcher = Matcher(MatchConfig(*(fixture.config[f"set_cost_{x}"] for x in ("class", "bbox", "giou"))))
    check_matches(matcher(output, step.targets), step.expected)
    weights = LossConfig(*(step.weights[f"loss_{x}"] for x in ("ce", "bbox", "giou")))
    losses = Criterion(weights, matcher)(output, Wanted(step.targets), objects=sum(len(t.labels) for t in step.targets))
    check_losses(losses, step, layers=len(output.logits))
    losses.total.backward()
    check_gradients(fixture.model, step, fixture)


@pytest.mark.parametrize("name", NAMES)
def test_beside_denoising_queries_it_is_the_same(official, name):
    fixture = official(name)
    targets = fixture.scenario("train").targets
    model = fixture.model.eval()
    with torch.no_grad():
        told, alone = model(fixture.images, known(targets)), model(fixture.images)
    same(matching_part(told), alone, rtol=1e-4, atol=1e-5)
