"""Parity with DINO, two-stage Deformable DETR and DN-DETR's fourth variant, which has DINO's parts: weights, draws and numbers."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from dndetr.models.boxes import cxcywh_to_xyxy
from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.denoising.noise import Draws, NoiseConfig, NoisedTargets, apply_noise
from dndetr.models.denoising.queries import Known
from dndetr.models.hosts.deformable_detr import DeformableDetrConfig
from dndetr.models.hosts.dino import DinoConfig
from dndetr.models.matcher import MatchConfig, Matcher
from tests.hosts.test_official import (
    check_gradients,
    check_losses,
    check_matches,
    close,
    padding_is_seen,  # noqa: F401, in this file too
)
from tests.official import SCENARIOS, Fixture, translate

CDN, PLAIN_DINO = "dino_4scale_cdn", "dino_4scale_no_dn"
LOOK_TWICE, SPOILT = "dn_dab_dino_deformable_detr", "dn_dab_dino_deformable_detr_contrastive_two_stage"
TWO_STAGE = "deformable_detr_two_stage"
NAMES = [CDN, PLAIN_DINO, LOOK_TWICE, SPOILT, TWO_STAGE]


class TwoStageFixture(Fixture):
    """Heads of the encoder are listed as those of one decoder layer more, or under names of their own."""

    renamed = [
        (r"transformer\.enc_output\.(.*)", r"proposals.project.\1"),
        (r"transformer\.enc_output_norm\.(.*)", r"proposals.norm.\1"),
        (r"transformer\.enc_out_class_embed\.(.*)", r"proposals.heads.cls.0.\1"),
        (r"transformer\.enc_out_bbox_embed\.(.*)", r"proposals.heads.box.0.\1"),
        (r"transformer\.pos_trans_norm\.(.*)", r"decoder.locate.norm.\1"),
        (r"transformer\.pos_trans\.(.*)", r"decoder.locate.embed.\1"),
        (r"transformer\.tgt_embed\.weight", "content"),
    ]

    @property
    def ours(self):
        """Without denoising the reference has no labels; it lists them nevertheless, but for plain Deformable DETR."""
        return ()

    @property
    def is_dino(self) -> bool:
        return self.config["model"].startswith("dino")

    def translate(self, weights):
        renamed, last = {}, self.config["dec_layers"]
        renames = list(self.renamed)
        if self.config["two_stage"]:
            renames += [
                (rf"class_embed\.{last}\.(.*)", r"proposals.heads.cls.0.\1"),
                (rf"bbox_embed\.{last}\.(.*)", r"proposals.heads.box.0.\1"),
            ]
        for name, tensor in weights.items():
            for pattern, other in renames:
                name = re.sub(f"^{pattern}$", other, name)
            renamed[name] = tensor
        kept = {name: tensor for name, tensor in renamed.items() if name.startswith(("proposals.", "decoder.locate."))}
        rest = {name: tensor for name, tensor in renamed.items() if name not in kept}
        return translate(rest, dense_decoder=False) | kept

    def host_config(self):
        c = self.config
        sizes = dict(queries=c["num_queries"], hidden=c["hidden_dim"], heads=c["nheads"], ffn=c["dim_feedforward"],
                     encoder_layers=c["enc_layers"], decoder_layers=c["dec_layers"], levels=c["num_feature_levels"],
                     points=c["enc_n_points"])  # fmt: skip
        if self.is_dino:
            return DinoConfig(**sizes)
        plain = c["model"].startswith("deformable")
        return DeformableDetrConfig(query="point" if plain else "box", two_stage=c["two_stage"], look_twice=not plain, **sizes)


@pytest.fixture(autouse=True)
def no_token_is_hidden(monkeypatch, padding_is_seen):  # noqa: F811
    """The references let tokens be chosen, and teach them, where there can be no box; to compare all else, so do we here."""
    monkeypatch.setattr("dndetr.models.proposals.hidden", lambda logits, possible: logits)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name):
    fixture, seen = TwoStageFixture(name), {}
    expected = fixture.evaluation()
    fixture.model.encoder.register_forward_hook(lambda module, args, output: seen.update(memory=output))
    with torch.no_grad():
        output = fixture.model.eval()(fixture.images)
    close(seen["memory"], expected["memory.0" if fixture.is_dino else "memory"], "memory")
    check_proposals(output, expected)
    close(
        output.anchors, expected["reference.0" if fixture.is_dino else "init_reference"].expand_as(output.anchors), "anchors"
    )
    close(output.logits, expected["pred_logits"], "logits")
    close(output.boxes, expected["pred_boxes"], "boxes")


def check_proposals(output, expected):
    names = [name for name in ("interm_outputs", "enc_outputs") if f"{name}.pred_logits" in expected]
    assert len(names) == (output.proposals is not None)
    for name in names:
        close(output.proposals.logits[0], expected[f"{name}.pred_logits"], "logits of the encoder")
        close(output.proposals.boxes[0], expected[f"{name}.pred_boxes"], "boxes of the encoder")
