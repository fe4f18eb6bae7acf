"""Parity with the reference implementations: same weights and inputs, same memory, outputs, noise, losses and gradients."""

from __future__ import annotations

import pytest
import torch

from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.denoising.queries import Known, Queries
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.neck import Projection
from dndetr.models.structures import Feature
from tests.official import SCENARIOS, Fixture

DENOISING = [
    "dn_dab_detr",
    "dn_dab_detr_p3",
    "dn_dab_deformable_detr",
    "dn_dab_deformable_detr_deformable_encoder_only",
    "dn_dab_deformable_detr_deformable_encoder_only_p3",
]
PLAIN = ["deformable_detr", "deformable_detr_single_scale", "deformable_detr_box_refine"]


def close(actual, expected, what="", floor=0.0):
    """To 1e-4 of the largest number, or better, and never closer than `floor`."""
    scale = max(1e-3, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=max(1e-5 * scale, floor), msg=lambda m: f"{what}: {m}")


def as_if_unpadded(projection: Projection, feature: Feature) -> Feature:
    stride = projection.conv.stride[0]
    return Feature(projection.norm(projection.conv(feature.x)), feature.padding[:, ::stride, ::stride])


@pytest.fixture(autouse=True)
def padding_is_seen(monkeypatch, request):
    """The reference lets padding act: of images in projections and positions, of denoising groups as empty slots.

    We hide both; to compare all else, here they are seen.
    """
    monkeypatch.setattr("dndetr.models.deformable.located", lambda reference, scaled: scaled[:, :, 0])
    monkeypatch.setattr(Projection, "forward", as_if_unpadded)
    if "hidden" not in request.keywords:
        monkeypatch.setattr(Queries, "blocked", lambda q: q.layout.blocked()[None] if q.layout.denoising else None)


@pytest.mark.parametrize("name", DENOISING + PLAIN)
def test_evaluation(name):
    fixture = Fixture(name)
    expected = fixture.evaluation()
    seen = {}
    encoder = fixture.model.encoder
    encoder.register_forward_hook(lambda module, args, output: seen.update(memory=output))
    with torch.no_grad():
        output = fixture.model.eval()(fixture.images)
    memory = expected["memory"] if "deformable" in name else expected["memory"].transpose(0, 1)
    close(seen["memory"], memory, "memory")
    close(output.logits, expected["pred_logits"], "logits")
    close(output.boxes, expected["pred_boxes"], "boxes")


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", DENOISING + PLAIN)
def test_training_step(name, scenario):
    """Noised queries, mask, outputs of every layer, matches, every loss, and the gradient of every parameter."""
    fixture = Fixture(name)
    step = fixture.scenario(scenario)
    expected, model = step.expected, fixture.model.train()
    known = Known(fixture.noised(step)) if name in DENOISING else None
    queries = {}
    model.decoder.register_forward_pre_hook(lambda module, args: queries.update(q=args[0]))
    output = model(fixture.images, known)
    empty = scenario == "train_all_empty"
    denoising, matching = output.split()
    close(matching.logits, expected["pred_logits"], "logits")
    close(matching.boxes, expected["pred_boxes"], "boxes")
    if known and not empty:
        check_queries(queries["q"], expected, name, fixture)
        close(denoising.logits, expected["dn_logits"], "denoising logits")
        close(denoising.boxes, expected["dn_boxes"], "denoising boxes")

    matcher = Matcher(MatchConfig(*(fixture.config[f"set_cost_{x}"] for x in ("class", "bbox", "giou"))))
    check_matches(matcher(matching, step.targets), expected)
    weights = LossConfig(*(fixture.config[f"{x}_loss_coef"] for x in ("cls", "bbox", "giou")))
    wanted = Wanted(step.targets, known.denoise.assignment(), fixture.config["scalar"]) if known else Wanted(step.targets)
    losses = Criterion(weights, matcher)(output, wanted, objects=sum(len(t.labels) for t in step.targets))
    check_losses(losses, step, layers=len(output.logits))
    losses.total.backward()
    check_gradients(model, step, fixture)


def check_queries(queries, expected, name, fixture):
    content, anchors = expected["query_label"], expected["query_bbox"]
    if name != "dn_dab_deformable_detr":  # the dense models are sequence-first
        content, anchors = content.transpose(0, 1), anchors.transpose(0, 1)
    k = queries.layout.denoising
    close(queries.content[:, :k], content[:, :k], "content of the denoising queries")
    close(queries.position, anchors, "anchors")
    if not fixture.config["num_patterns"]:  # the reference stores the content before patterns are added
        close(queries.content, content, "content")
    assert torch.equal(queries.layout.blocked(), expected["attn_mask"])


def check_matches(layers, expected):
    for i, layer in enumerate(layers):
        for b in range(2):
            own = layer.image == b
            assert torch.equal(layer.query[own], expected[f"match.layer{i}.{b}.query"])
            assert torch.equal(layer.object[own], expected[f"match.layer{i}.{b}.target"])


def check_losses(losses, step, layers):
    official = {"cls": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
    compared = 0
    for i in range(layers):
        suffix = "" if i == layers - 1 else f"_{i}"
        for ours, theirs in official.items():
            for prefix, tgt in (("", ""), ("dn_", "tgt_")):
                if f"{prefix}{ours}_{i}" in losses.parts:
                    loss = step.losses.get(f"{tgt}{theirs}{suffix}", 0.0)
                    torch.testing.assert_close(losses.parts[f"{prefix}{ours}_{i}"].item(), loss, rtol=1e-4, atol=1e-6)
                    compared += 1
    assert compared == len(losses.parts)
    torch.testing.assert_close(losses.total.item(), step.total, rtol=1e-4, atol=1e-5)


def check_gradients(model, step, fixture, kink=0.0):
    """The norm of every parameter's gradient, and the whole gradient, up to `kink`, where the reference stored it."""
    ours = {name: p.grad for name, p in model.named_parameters()}
    stored = {k.removeprefix("grad."): v for k, v in step.expected.items() if k.startswith("grad.")}
    stored = fixture.translate(stored)
    # A gradient is a sum over queries and pixels. Where large terms cancel, what is left is no more exact than they were:
    # some roundings of float32 (2^-23) of a number as large as the largest gradient.
    largest = max(float(gradient.abs().max()) for gradient in stored.values())
    floor = max(16 * torch.finfo(torch.float32).eps * largest, kink)
    for name, gradient in stored.items():
        if not (model.heads.shared and name.startswith(("heads.cls.1", "heads.cls.2"))):
            close(ours[name], gradient, f"gradient of {name}", floor)
    norms = {k: torch.tensor(v or 0.0) for k, v in step.grad_norms.items() if "in_proj" not in k and k != "query_embed.weight"}
    compared = 0
    for name, norm in fixture.translate(norms).items():
        if name in ours:
            mine = ours[name].norm() if ours[name] is not None else torch.tensor(0.0)
            torch.testing.assert_close(mine, norm.float(), rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
            compared += 1
    assert compared > 30


@pytest.mark.hidden
@pytest.mark.parametrize("name", DENOISING)
def test_hidden_slots_change_only_the_denoising_part_of_images_that_have_them(name):
    """Where we differ on purpose: images with fewer objects than the largest have empty slots, which we hide."""
    fixture = Fixture(name)
    step = fixture.scenario("train")
    few, full = sorted(range(2), key=lambda b: len(step.targets[b].labels))
    assert len(step.targets[few].labels) < len(step.targets[full].labels)  # so the first one has empty slots
    output = fixture.model(fixture.images, Known(fixture.noised(step)))
    denoising, matching = output.split()
    close(matching.logits, step.expected["pred_logits"], "logits")
    close(matching.boxes, step.expected["pred_boxes"], "boxes")
    close(denoising.logits[:, full], step.expected["dn_logits"][:, full], "denoising logits of the full image")
    close(denoising.boxes[:, full], step.expected["dn_boxes"][:, full], "denoising boxes of the full image")
    real = fixture.noised(step).valid[few]
    theirs = step.expected["dn_logits"][:, few, real]
    assert (denoising.logits[:, few, real] - theirs).abs().max() > 1e-3 * theirs.abs().max()
