"""A training step and inference of our detectors, against the same detectors in transformers.

Ours is the step of `dndetr train`, for the paper's own detectors with 5 groups of denoising queries; the peer has none, which
is in its favour. Both sides have the same sizes (parameters are printed), images, boxes, clipping and frozen layers, no
dropout and losses on every layer. The peer gets what serves it best: the fused AdamW that transformers' Trainer takes by
default, SDPA where it supports it (its default but in DabDetr, which has its own attention only), no mask of padding, and
frozen batch norm (its default). transformers 5.24 freezes nothing of DabDetr's ResNet and, by a slip in names, all of the
others': here stem and first stage are frozen, as in the papers and on our side. Inference ends with the 300 best boxes of each
image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import transformers
from compare import Contest, Functions, Row, main
from ours import learner, made_up, training_step
from torch import nn

from dndetr.training.evaluate import detect
from dndetr.training.precision import autocast, looking

CPU, CLASSES, SIZE, TOP = torch.device("cpu"), 91, (320, 416), 300
images, targets = made_up(2, *SIZE, objects=7, classes=CLASSES)


def ours_training(preset: str) -> Functions:
    step = partial(training_step, preset, (images, targets), CLASSES, "host.dropout=0.0")
    return {"ours fp32": step("train.precision=fp32"), "ours bf16": step("train.precision=bf16")}


def peer_training(build: Callable[[], nn.Module]) -> Functions:
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]

    def step(precision: str) -> None:
        with autocast(precision, CPU):
            loss = model(images.pixels, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return {"peer fp32": partial(step, "fp32"), "peer bf16": partial(step, "bf16")}


def ours_inference(preset: str) -> Functions:
    model = learner(preset, CLASSES)[0].evaluated.eval()
    print(f"{preset}: {millions(model)} parameters", flush=True)

    @torch.inference_mode()
    def find(precision: str) -> None:
        detect(looking(model, images, precision, CPU)(None), [target.size for target in targets], TOP)

    return {"ours fp32": partial(find, "fp32"), "ours bf16": partial(find, "bf16")}


def peer_inference(build: Callable[[], nn.Module]) -> Functions:
    model = build().eval()
    print(f"{type(model).__name__}: {millions(model)} parameters", flush=True)
    processor = transformers.ConditionalDetrImageProcessor()  # DabDetr's; it does the same as DeformableDetr's
    sizes = [target.size for target in targets]

    @torch.inference_mode()
    def find(precision: str) -> None:
        with autocast(precision, CPU):
            output = model(images.pixels)
        processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes, top_k=TOP)

    return {"peer fp32": partial(find, "fp32"), "peer bf16": partial(find, "bf16")}


def millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"


def dab_detr() -> nn.Module:
    config = transformers.DabDetrConfig(backbone_config=resnet50("stage4"), **SIZES)
    return freeze(transformers.DabDetrForObjectDetection(config))


def deformable_detr() -> nn.Module:
    backbone = resnet50("stage2", "stage3", "stage4")
    config = transformers.DeformableDetrConfig(backbone_config=backbone, with_box_refine=True, **SIZES)
    return freeze(transformers.DeformableDetrForObjectDetection(config))


def two_stage() -> nn.Module:
    """What transformers has that is nearest to DINO: two stages, and as many queries."""
    backbone = resnet50("stage2", "stage3", "stage4")
    sizes = {**SIZES, "num_queries": 900, "two_stage_num_proposals": 900}
    config = transformers.DeformableDetrConfig(backbone_config=backbone, with_box_refine=True, two_stage=True, **sizes)
    return freeze(transformers.DeformableDetrForObjectDetection(config))


def detr() -> nn.Module:
    config = transformers.DetrConfig(backbone_config=resnet50("stage4"), **{**SIZES, "num_queries": 100})
    return freeze(transformers.DetrForObjectDetection(config))


def conditional_detr() -> nn.Module:
    config = transformers.ConditionalDetrConfig(backbone_config=resnet50("stage4"), **SIZES)
    return freeze(transformers.ConditionalDetrForObjectDetection(config))


SIZES = dict(num_queries=300, num_labels=CLASSES, encoder_ffn_dim=2048, decoder_ffn_dim=2048, dropout=0.0, auxiliary_loss=True)


def resnet50(*features: str) -> transformers.ResNetConfig:
    return transformers.ResNetConfig(out_features=list(features))


def freeze(model: nn.Module) -> nn.Module:
    """Let all but the backbone's stem and first stage learn."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embedder" not in name and "stages.0." not in name)
    return model


def rows(what: str, fp32: tuple[float, float | None], bf16: tuple[float, float | None]) -> list[Row]:
    return [
        Row(f"{what} fp32 / fp32", "ours fp32", "peer fp32", *fp32),
        Row(f"{what} bf16 / fp32", "ours bf16", "peer fp32", *bf16),
        Row(f"{what} bf16 / autocast", "ours bf16", "peer bf16"),
    ]


DETR = ("detr-r50-500ep", detr)
CONDITIONAL = ("conditional-r50-50ep", conditional_detr)
DAB = ("dn-dab-r50-50ep", dab_detr)
DEFORMABLE = ("dn-deform-pp-r50-12ep", deformable_detr)
DINO = ("dn-dino-r50-12ep", two_stage)


def training(preset: str, build: Callable[[], nn.Module]) -> list[Callable[[], Functions]]:
    return [partial(ours_training, preset), partial(peer_training, build)]


def inference(preset: str, build: Callable[[], nn.Module]) -> list[Callable[[], Functions]]:
    return [partial(ours_inference, preset), partial(peer_inference, build)]


if __name__ == "__main__":
    main(
        __doc__.partition("\n")[0],
        [
            Contest(training(*DAB), rows("dab step", (1.25, 1.5), (2, 3)), rounds=5),
            Contest(training(*DEFORMABLE), rows("deformable step", (2, 3), (4, 6)), rounds=3),
            Contest(training(*DETR), rows("detr step", (1.3, None), (2.5, None)), rounds=5),
            Contest(training(*CONDITIONAL), rows("conditional step", (1.3, None), (2.5, None)), rounds=5),
            Contest(training(*DINO), rows("dino step", (1.3, None), (2.5, None)), rounds=3),
            Contest(inference(*DAB), rows("dab inference", (1.3, 1.6), (2.5, 4)), rounds=7),
            Contest(inference(*DEFORMABLE), rows("deformable inference", (1.3, 1.6), (2.5, 4)), rounds=5),
        ],
    )
