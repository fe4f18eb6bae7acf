"""Parity with DINO, two-stage Deformable DETR and DN-DETR's fourth variant, which has DINO's parts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from dndetr.models.boxes import cxcywh_to_xyxy
from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.denoising.noise import Draws, NoiseConfig, NoisedTargets, apply_noise
from dndetr.models.denoising.queries import Known, Queries
from dndetr.models.hosts.deformable_detr import DeformableDetrConfig
from dndetr.models.hosts.dino import DinoConfig
from dndetr.models.matcher import MatchConfig, Matcher
from tests.hosts.test_official import (
    check_gradients,
    check_matches,
    close,
    padding_is_seen,  # noqa: F401, in this file too
)
from tests.official import SCENARIOS, Fixture, translate

CDN, NOT_DENOISED = "dino_4scale_cdn", "dino_4scale_no_dn"
LOOK_TWICE, SPOILT = "dn_dab_dino_deformable_detr", "dn_dab_dino_deformable_detr_contrastive_two_stage"
TWO_STAGE = "deformable_detr_two_stage"
NAMES = [CDN, NOT_DENOISED, LOOK_TWICE, SPOILT, TWO_STAGE]


class TwoStageFixture(Fixture):
    """Heads of the encoder are listed as those of one decoder layer more, or under names of their own."""

    renamed = [
        (r"transformer\.decoder\.(class|bbox)_embed\.(.*)", r"\1_embed.\2"),  # listed twice
        (r"transformer\.enc_output\.(.*)", r"proposals.project.\1"),
        (r"transformer\.enc_output_norm\.(.*)", r"proposals.norm.\1"),
        (r"transformer\.enc_out_class_embed\.(.*)", r"proposals.heads.cls.0.\1"),
        (r"transformer\.enc_out_bbox_embed\.(.*)", r"proposals.heads.box.0.\1"),
        (r"transformer\.pos_trans_norm\.(.*)", r"decoder.locate.norm.\1"),
        (r"transformer\.pos_trans\.(.*)", r"decoder.locate.embed.\1"),
        (r"transformer\.tgt_embed\.weight", "content"),
    ]

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


def replayed(fixture: TwoStageFixture, step) -> NoisedTargets:
    """Our noise from the draws that the reference recorded, in its boxes: it moves the sides of a box, not centre and size."""
    c, dino = fixture.config, fixture.is_dino
    scale = c["dn_box_noise_scale"] if dino else c["box_noise_scale"]
    rate = c["dn_label_noise_ratio"] / 2 if dino else c["label_noise_scale"]
    groups, versions = (step.num_dn_group, 2) if dino else (step.scalar_used, 1)
    noise = NoiseConfig(groups, scale, scale, rate, contrastive=dino)
    counts, draws = [len(t.labels) for t in step.targets], [step.expected[f"draw.{i}"] for i in range(4 if dino else 3)]

    labels, boxes = (torch.cat([getattr(t, name) for t in step.targets]) for name in ("labels", "boxes"))
    labels, boxes = labels.repeat(groups * versions), boxes.repeat(groups * versions, 1)
    flipped, offset = draws[0] < rate, torch.zeros_like(labels)
    offset[flipped] = (draws[1] - labels[flipped]) % fixture.num_classes  # it may draw the same class again
    moves = 2 * draws[2] - 1  # of the sides, in lambda / 2 of the box's size
    if dino:  # signs, and sizes from 0 to 1, of negatives from 1 to 2
        further = torch.arange(len(labels)) // sum(counts) % 2
        moves = moves * (draws[3] + further[:, None])
    sides = cxcywh_to_xyxy(boxes) + moves * (boxes[:, [2, 3, 2, 3]] / 2) * scale
    begin, end = sides.clamp(0, 1).chunk(2, dim=1)
    begins, ends = moves.chunk(2, dim=1)
    amounts = torch.cat((begins + ends, ends - begins), dim=1) / 2  # the same of centre and size

    def by_image(rows):
        return [x.flatten(1, 2) for x in rows.view(groups, versions, -1, *rows.shape[1:]).split(counts, dim=2)]

    ours = zip(by_image(draws[0]), by_image(offset), by_image((amounts + 1) / 2), strict=True)
    noised = apply_noise(step.targets, [Draws(*draw) for draw in ours], noise, fixture.num_classes)
    theirs, inside = noised.boxes.clone(), torch.zeros_like(noised.valid)
    for b, (box, whole) in enumerate(
        zip(
            by_image(torch.cat(((begin + end) / 2, end - begin), 1)),
            by_image((sides == sides.clamp(0, 1)).all(1)),
            strict=True,
        )
    ):
        theirs[b, noised.valid[b]] = box.flatten(0, 1)
        inside[b, noised.valid[b]] = whole.flatten()
    like = inside & ~noised.negative  # the image's borders stop sides there, centre and size here
    close(noised.boxes[like], theirs[like], "noised boxes")
    return replace(noised, boxes=theirs)


NOISED = {CDN, LOOK_TWICE, NOT_DENOISED}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != SPOILT])
def test_training_step(name, scenario):
    """Noised queries, mask, outputs of the encoder and of every layer, matches, every loss, every parameter's gradient.

    With its denoising switched off DINO still noises one group, and matches these queries with the objects like all others. We
    do not; to compare all else, here they are told, and taken for matching queries.
    """
    fixture = TwoStageFixture(name)
    step = fixture.scenario(scenario)
    expected, model = step.expected, fixture.model.train()
    known = Known(replayed(fixture, step)) if name in NOISED and scenario != "train_all_empty" else None
    queries = {}
    model.decoder.register_forward_pre_hook(lambda module, args: queries.update(q=args[0]))
    output = model(fixture.images, known)
    if name == NOT_DENOISED:
        output, known = replace(output, layout=QueryLayout(0, 0, output.layout.width)), None
    denoising, matching = output.split()
    check_proposals(output, expected)
    close(matching.logits, expected["pred_logits"], "logits")
    close(matching.boxes, expected["pred_boxes"], "boxes")
    wanted = Wanted(step.targets)
    if known:
        check_queries(queries["q"], expected)
        close(denoising.logits, expected["dn_logits"], "denoising logits")
        close(denoising.boxes, expected["dn_boxes"], "denoising boxes")
        assignment, negatives = known.denoise.assignment(), known.denoise.negatives()
        if fixture.is_dino:  # it teaches background to empty slots, too
            positive = torch.zeros_like(known.denoise.valid)
            positive[assignment.image, assignment.query] = True
            negatives = (~positive).nonzero(as_tuple=True)
        wanted = Wanted(step.targets, assignment, known.denoise.groups, negatives=negatives)
    losses = learned(fixture, step, output, wanted)
    torch.testing.assert_close(losses.total.item(), step.total, rtol=1e-4, atol=1e-5)
    losses.total.backward()
    # In one step a unit of the decoder's first layer is so close to 0 that rounding decides on which side of its ReLU it lies.
    check_gradients(model, step, fixture, kink=2e-5 if (name, scenario) == (CDN, "train") else 0.0)


def learned(fixture, step, output, wanted):
    """The losses, after matches and each loss were found to be the same."""
    _, matching = output.split()
    matcher = Matcher(MatchConfig(*(fixture.config[f"set_cost_{x}"] for x in ("class", "bbox", "giou"))))
    check_matches(matcher(matching, step.targets), step.expected)
    weights = LossConfig(*(fixture.config[f"{x}_loss_coef"] for x in ("cls", "bbox", "giou")))
    losses = Criterion(weights, matcher)(output, wanted, objects=sum(len(t.labels) for t in step.targets))
    official = {"cls": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
    last, enc = str(len(output.logits) - 1), "_interm" if fixture.is_dino else "_enc"
    for name, value in losses.parts.items():
        dn, kind, layer = re.fullmatch(r"(dn_)?(cls|box|giou)_(\d|enc)", name).groups()
        theirs = official[kind]
        if dn:
            theirs = f"{theirs}_dn" if fixture.is_dino else f"tgt_{theirs}"
        theirs += {last: "", "enc": enc}.get(layer, f"_{layer}")
        torch.testing.assert_close(value.item(), step.losses[theirs], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert ("cls_enc" in losses.parts) == (output.proposals is not None)
    return losses


def check_queries(queries, expected):
    k = queries.layout.denoising
    close(queries.content[:, :k], expected["query_label"][:, :k], "content of the denoising queries")
    close(queries.position[:, :k], expected["query_bbox"][:, :k], "boxes of the denoising queries")
    assert torch.equal(queries.layout.blocked(), expected["attn_mask"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_training_step_beside_spoilt_noise(scenario):
    """DN-DETR's contrastive noise takes negatives for positives wherever a batch has more than one image, and the other way
    round; box and class losses then disagree on which is which. So its noised queries are taken as they are, and of the losses
    those of encoder and matching queries are compared; without objects there is no noise, and all is.
    """
    fixture = TwoStageFixture(SPOILT)
    step = fixture.scenario(scenario)
    expected, model = step.expected, fixture.model.train()

    def beside_noise(module, args):
        queries, *rest = args
        content, position = (
            torch.cat((expected[f"query_{name}"], x), dim=1)
            for name, x in (("label", queries.content), ("bbox", queries.position))
        )
        layout = QueryLayout(step.scalar_used, step.pad_size // step.scalar_used, queries.layout.queries)
        assert not step.pad_size or torch.equal(layout.blocked(), expected["attn_mask"])
        return Queries(content, position, layout), *rest

    model.decoder.register_forward_pre_hook(beside_noise)
    output = model(fixture.images)
    output = replace(output, layout=replace(output.layout, groups=step.scalar_used, slots=step.pad_size // step.scalar_used))
    denoising, matching = output.split()
    check_proposals(output, expected)
    close(matching.logits, expected["pred_logits"], "logits")
    close(matching.boxes, expected["pred_boxes"], "boxes")
    if step.pad_size:
        close(denoising.logits, expected["dn_logits"], "denoising logits")
        close(denoising.boxes, expected["dn_boxes"], "denoising boxes")
    losses = learned(fixture, step, output, Wanted(step.targets))
    theirs = sum(step.weights[name] * step.losses[name] for name in step.weights if name in step.losses and name[:3] != "tgt")
    torch.testing.assert_close(losses.total.item(), theirs, rtol=1e-4, atol=1e-5)
    if scenario == "train_all_empty":
        losses.total.backward()
        check_gradients(model, step, fixture)
