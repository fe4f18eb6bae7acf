"""Parity with transformers' DETRs: a second, independent implementation of four hosts, at tiny size, weights copied.

Detr and ConditionalDetr are the official models with `auxiliary_loss=False` alone, their default. With True, which losses on
every layer need, each layer is given the normed state of the one before, as in no other DETR, and the last is normed twice.
"""

from __future__ import annotations

import re

import pytest
import torch

from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.hosts.conditional_detr import ConditionalDetr, ConditionalDetrConfig
from dndetr.models.hosts.dab_detr import DabDetr, DabDetrConfig
from dndetr.models.hosts.deformable_detr import DeformableDetr, DeformableDetrConfig
from dndetr.models.hosts.detr import Detr, DetrConfig
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.structures import Images, Output, Target
from tests.official import StoredFeatures

transformers = pytest.importorskip("transformers")

RESNET = dict(model_type="resnet", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
SIZES = dict(
    encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
    decoder_ffn_dim=48, num_queries=9, num_labels=5, dropout=0.0, use_timm_backbone=False, use_pretrained_backbone=False,
    backbone=None,
)  # fmt: skip
OURS = dict(queries=9, hidden=32, heads=4, ffn=48, encoder_layers=2, decoder_layers=3)

COMMON = [
    (r"class_labels_classifier\.", "heads.cls.0."),
    (r"class_embed\.(\d)\.", r"heads.cls.\1."),
    (r"class_embed\.", "heads.cls.0."),
    (r"bbox_predictor\.", "heads.box.0."),
    (r"bbox_embed\.(\d)\.", r"heads.box.\1."),
    (r"input_proj\.(\d)\.0\.", r"neck.project.\1.conv."),
    (r"input_proj\.(\d)\.1\.", r"neck.project.\1.norm."),
    (r"input_projection\.", "project."),
    (r"mlp\.fc", "fc"),
    (r"mlp\.(final|act)", r"\1"),
    (r"fc([12])\.", r"feed_forward.linear\1."),
    (r"activation_fn\.", "feed_forward.activation."),
    (r"final_layer_norm\.", "feed_forward.norm."),
    (r"(encoder.layers.\d.)self_attn_layer_norm", r"\1norm"),
    (r"(encoder.layers.\d.)self_attn\.", r"\1attention."),
]
DETR = [
    (r"query_position_embeddings\.weight", "position"),
    (r"decoder\.layernorm", "decoder.norm"),
    (r"(decoder.layers.\d.)self_attn_layer_norm", r"\1norm1"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"(decoder.layers.\d.)self_attn\.", r"\1self_attention."),
    (r"encoder_attn\.", "cross_attention."),
]
CONDITIONAL = [
    (r"query_position_embeddings\.weight", "position"),
    (r"decoder\.query_scale", "decoder.content_scale"),
    (r"decoder\.ref_point_head", "point"),
    (r"decoder\.layernorm", "decoder.norm"),
    (r"(decoder.layers.\d.)self_attn_layer_norm", r"\1norm1"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"encoder_attn\.q_pos_sine_proj", "cross_position.q"),
    (r"encoder_attn\.q_pos_proj", "first_position"),
    (r"(decoder.layers.\d.)self_attn\.", r"\1self_"),
    (r"encoder_attn\.", "cross_"),
    (r"_([qk])_(content|pos)_proj", r"_\2.\1"),
    (r"(self|cross)_pos\.", r"\1_position."),
    (r"(self|cross)_([vo])_proj", r"\1_content.\2_proj"),
]
DAB = [
    (r"query_refpoint_embeddings\.weight", "anchors"),
    (r"encoder\.query_scale", "encoder.position_scale"),
    (r"decoder\.query_scale", "decoder.content_scale"),
    (r"ref_point_head", "anchor_position"),
    (r"ref_anchor_head", "reference_size"),
    (r"decoder\.layernorm", "decoder.norm"),
    (r"self_attn\.self_attn_layer_norm", "norm1"),
    (r"cross_attn\.cross_attn_layer_norm", "norm2"),
    (r"self_attn\.self_attn_(q|k)\w+_(content|pos)_proj", r"self_\2.\1"),
    (r"self_attn\.self_attn_value_proj", "self_content.v"),
    (r"self_attn\.self_attn\.output_proj", "self_content.out"),
    (r"cross_attn\.cross_attn_query_pos_sine_proj", "cross_position.q"),
    (r"cross_attn\.cross_attn_query_pos_proj", "first_position"),
    (r"cross_attn\.cross_attn_(q|k)\w+_(content|pos)_proj", r"cross_\2.\1"),
    (r"cross_attn\.cross_attn_value_proj", "cross_content.v"),
    (r"cross_attn\.cross_attn\.output_proj", "cross_content.out"),
    (r"(self|cross)_pos\.", r"\1_position."),
]
DEFORMABLE = [
    (r"query_position_embeddings\.weight", "embeddings"),
    (r"^reference_points\.", "decoder.locate.point."),
    (r"pos_trans\.", "decoder.locate.embed."),
    (r"pos_trans_norm\.", "decoder.locate.norm."),
    (r"enc_output\.", "proposals.project."),
    (r"enc_output_norm\.", "proposals.norm."),
    (r"heads\.(cls|box)\.3\.", r"proposals.heads.\1.0."),  # of one decoder layer more
    (r"level_embed", "neck.level"),
    (r"(decoder.layers.\d.)self_attn_layer_norm", r"\1norm1"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"(decoder.layers.\d.)self_attn\.", r"\1self_attention."),
    (r"encoder_attn\.", "cross_attention."),
    (r"sampling_offsets", "offsets"),
    (r"attention_weights", "weights"),
    (r"value_proj", "value"),
]
PROJECTIONS = [(r"output_proj|out_proj|o_proj", "out"), (r"\b([qkv])_proj", r"\1")]


def copy_weights(theirs: torch.nn.Module, ours: torch.nn.Module, rules: list[tuple[str, str]]) -> None:
    own = set(ours.state_dict())
    state = {}
    for name, tensor in theirs.state_dict().items():
        bare = name.removeprefix("model.")
        if bare.startswith("backbone") or bare.startswith(("decoder.bbox_embed", "decoder.class_embed")):
            continue
        for pattern, replacement in COMMON + rules + PROJECTIONS:
            bare = re.sub(pattern, replacement, bare)
        if bare == "embeddings":
            state["position"], state["content"] = tensor.chunk(2, 1)
        elif bare in own or "heads" not in bare:
            state[bare] = tensor
    if "label.table.weight" in own:  # their matching queries start from nothing
        state["label.table.weight"] = torch.zeros(6, 31)
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("place.") for name in missing), (missing, unexpected)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere: some are born as zeros and would hide what they multiply."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def run(theirs, build, config, rules, widths):
    torch.manual_seed(0)
    pixels, mask = torch.randn(2, 3, 64, 96), torch.ones(2, 64, 96, dtype=torch.long)
    if not isinstance(config, DeformableDetrConfig):  # whose group norm counts what is under the padding
        pixels[1, :, :, 64:], mask[1, :, 64:] = 0, 0
    features = []
    encoder = theirs.model.backbone if hasattr(theirs.model, "backbone") else theirs.model.conv_encoder
    encoder.register_forward_hook(lambda module, args, output: features.extend(collect(output, widths)))
    with torch.no_grad():
        expected = theirs(pixels, pixel_mask=mask)
        ours = build(config, backbone=StoredFeatures(features), num_classes=5)
        copy_weights(theirs, ours, rules)
        output = ours.eval()(Images(pixels, mask == 0))
    return output, expected


def collect(output, widths):
    """The feature maps somewhere in what their backbone returns, fine to coarse."""
    found = []

    def walk(x):
        if isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[1] in (8, 16) and x.is_floating_point():
            found.append(x)
        elif isinstance(x, (list, tuple)):
            for item in x:
                walk(item)
        elif hasattr(x, "feature_maps"):
            walk(x.feature_maps)

    walk(output)
    return found[-widths:]


def check(output, expected):
    """The last layer, which hangs on all before it: only that does transformers return without targets."""
    torch.testing.assert_close(output.logits[-1], expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.boxes[-1], expected.pred_boxes, rtol=1e-4, atol=1e-5)


def test_dab_detr():
    config = transformers.DabDetrConfig(hidden_size=32, backbone_config={**RESNET, "out_features": ["stage4"]}, **SIZES)
    theirs = shaken(transformers.DabDetrForObjectDetection(config))
    check(*run(theirs, DabDetr, DabDetrConfig(**OURS), DAB, widths=1))


@pytest.mark.parametrize(("refine", "points"), [(False, {}), (True, {}), (True, {"encoder": 2, "decoder": 3})])
def test_deformable_detr(refine, points):
    """Also where encoder and decoder sample different numbers of points."""
    backbone = {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}
    config = transformers.DeformableDetrConfig(d_model=32, backbone_config=backbone, with_box_refine=refine, **SIZES)
    config.update({f"{part}_n_points": count for part, count in points.items()})
    theirs = shaken(transformers.DeformableDetrForObjectDetection(config))
    sampled = {"points": points.get("encoder", 4), "decoder_points": points.get("decoder")}
    ours = DeformableDetrConfig(query="point", refine=refine, **OURS, **sampled)
    check(*run(theirs, DeformableDetr, ours, DEFORMABLE, widths=3))


def test_two_stage_deformable_detr(monkeypatch):
    """There, as in the reference, tokens where there can be no box take part; here they are made to."""
    monkeypatch.setattr("dndetr.models.proposals.hidden", lambda logits, possible: logits)
    backbone = {**RESNET, "out_features": ["stage2", "stage3", "stage4"]}
    config = transformers.DeformableDetrConfig(
        d_model=32, backbone_config=backbone, with_box_refine=True, two_stage=True, two_stage_num_proposals=9, **SIZES
    )
    theirs = shaken(transformers.DeformableDetrForObjectDetection(config))
    ours = DeformableDetrConfig(query="point", two_stage=True, **OURS)
    output, expected = run(theirs, DeformableDetr, ours, DEFORMABLE, widths=3)
    check(output, expected)
    torch.testing.assert_close(output.proposals.logits[0], expected.enc_outputs_class, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.anchors, expected.init_reference_points, rtol=1e-4, atol=1e-5)


def test_detr():
    theirs = shaken(transformers.DetrForObjectDetection(embeddings_config("Detr")))
    check(*run(theirs, Detr, DetrConfig(dropout=0.0, **OURS), DETR, widths=1))


def test_conditional_detr():
    theirs = shaken(transformers.ConditionalDetrForObjectDetection(embeddings_config("ConditionalDetr")))
    check(*run(theirs, ConditionalDetr, ConditionalDetrConfig(dropout=0.0, **OURS), CONDITIONAL, widths=1))


@pytest.mark.parametrize("counts", [(3, 2), (0, 4), (0, 0)])
def test_losses_of_detr(counts):
    """Every loss of every layer, and their sum. Only the loss is told of auxiliary losses: layers are ours to choose."""
    theirs = transformers.DetrForObjectDetection(config := embeddings_config("Detr"))
    config.auxiliary_loss = True
    output, targets = predictions(layers=3, queries=9, classes=5), objects(counts, classes=5)
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    logits, boxes = output.logits, output.boxes
    total, expected, _ = theirs.loss_function(logits[-1], labels, "cpu", boxes[-1], config, logits, boxes)
    criterion = Criterion(LossConfig(cls=1.0, box=5.0, giou=2.0, none=0.1), Matcher(MatchConfig(cls=1.0, box=5.0, giou=2.0)))
    losses = criterion(output, Wanted(targets), objects=sum(counts))
    torch.testing.assert_close(losses.total, total, rtol=1e-4, atol=1e-5)
    for ours, name in (("cls", "loss_ce"), ("box", "loss_bbox"), ("giou", "loss_giou")):
        for layer, suffix in enumerate(("_0", "_1", "")):
            torch.testing.assert_close(losses.parts[f"{ours}_{layer}"], expected[name + suffix], rtol=1e-4, atol=1e-5)


def embeddings_config(name):
    """Of one of the two models whose queries are embeddings."""
    backbone = {**RESNET, "out_features": ["stage4"]}
    return getattr(transformers, f"{name}Config")(d_model=32, backbone_config=backbone, auxiliary_loss=False, **SIZES)


def predictions(layers, queries, classes):
    """Of two images."""
    torch.manual_seed(1)
    logits, boxes = torch.randn(layers, 2, queries, classes + 1), torch.randn(layers, 2, queries, 4).sigmoid()
    return Output(logits, boxes, None, QueryLayout(groups=0, slots=0, queries=queries), softmax=True)


def objects(counts, classes):
    torch.manual_seed(2)
    return [Target(torch.randint(classes, (count,)), torch.randn(count, 4).sigmoid()) for count in counts]
