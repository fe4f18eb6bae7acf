"""What is counted of a preset, and how it is shown beside the paper's numbers."""

import io
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dndetr.config import PaperRow
from dndetr.console import UserError
from dndetr.info import Info, build, info, multiply_adds, report, told
from dndetr.models.backbone import BackboneConfig
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.hosts.dab_detr import DabDetrConfig
from dndetr.models.structures import Images, Output
from tests.training.tiny import resolved, tiny_config, tiny_model

SIZE = dict(height=32, width=64, num_classes=3)
DAB = DabDetrConfig(queries=9, hidden=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=2)


@cache
def counts_of(config, **options) -> Info:
    return info(config, **{**SIZE, **options})


def test_parameters_are_those_of_a_real_detector():
    config = tiny_config()
    counted, model = counts_of(config), tiny_model(config)
    assert counted.parameters == counted.trainable == sum(p.numel() for p in model.parameters())
    assert (counted.size, counted.classes, counted.objects) == ((32, 64), 3, 7)
    assert info(resolved(config), **SIZE) == counted


def test_frozen_layers_count_but_do_not_learn():
    config = replace(tiny_config(), backbone=BackboneConfig("resnet18"))
    counted, free = counts_of(config), counts_of(replace(config, backbone=BackboneConfig("resnet18", "none")))
    stem_and_first_stage = 3 * 64 * 49 + 4 * 64 * 64 * 9
    batch_norms = 2 * (5 * 64 + 5 * 128 + 5 * 256 + 5 * 512)  # a weight and a bias of every channel: buffers when frozen
    assert counted.parameters - counted.trainable == stem_and_first_stage
    assert free.trainable == free.parameters == counted.parameters + batch_norms


@pytest.mark.parametrize("host", [tiny_config().host, DAB], ids=["deformable", "dab"])
def test_inference_counts_what_a_real_forward_does(host):
    config = replace(tiny_config(), host=host)
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's own kernel is not counted
        real = multiply_adds(tiny_model(config).eval(), Images(torch.zeros(1, 3, 32, 64)))
    assert counts_of(config).inference == real


class Pointwise(nn.Module):
    """Two linear layers over all pixels, 3 to 8 to 5 channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, images, known):
        x = self.b(self.a(images.pixels.flatten(2).transpose(1, 2)))[None]
        return Output(x, x[..., :4], x, QueryLayout(0, 0, x.shape[2]))


def test_multiply_adds_by_hand():
    """A backward step multiplies twice as often, but no gradient is wanted of the pixels."""
    images = Images(torch.zeros(1, 3, 4, 10))
    assert multiply_adds(Pointwise(), images) == 40 * (3 * 8 + 8 * 5)
    assert multiply_adds(Pointwise(), images, backward=True) == 40 * (2 * 3 * 8 + 3 * 8 * 5)


def test_a_training_step_counts_about_three_forwards():
    counted = counts_of(tiny_config())
    assert 2.5 < counted.training / counted.inference < 3.5


def test_a_larger_image_costs_its_share_more():
    once, twice = counts_of(tiny_config()), counts_of(tiny_config(), width=128)
    assert 1.5 < twice.inference / once.inference < 2


def test_a_baseline_has_no_denoising_and_the_same_other_numbers():
    config = tiny_config()
    with_noise, baseline = counts_of(config), counts_of(replace(config, noise=None))
    assert baseline == replace(with_noise, denoising=None)
    assert with_noise.denoising > with_noise.training


@pytest.mark.parametrize("host", [tiny_config().host, DAB], ids=["deformable", "dab"])
def test_denoising_costs_linear_layers_and_the_square_of_self_attention(host):
    """What M objects add is a * M + b * M ** 2 with a small b: its third differences are 0."""
    config = replace(tiny_config(), host=host)
    model, images = build(config, 3).train(), Images(torch.empty(1, 3, 32, 64, device="meta"))
    zero = multiply_adds(model, images, backward=True)
    one, two, three = (multiply_adds(model, images, told(config.noise, 3, m), backward=True) - zero for m in (1, 2, 3))
    assert three - 3 * two + 3 * one == 0
    assert 2 < two / one < 2.2


def test_twice_the_groups_cost_what_twice_the_objects_do():
    config = tiny_config()
    more = replace(config, noise=replace(config.noise, groups=4))
    assert counts_of(more, objects=3).denoising == counts_of(config, objects=6).denoising


def test_nothing_is_computed():
    assert {p.device.type for p in build(tiny_config(), 3).parameters()} == {"meta"}


def test_a_missing_package_is_the_users_to_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip install"):
        info(replace(tiny_config(), backbone=BackboneConfig("efficientnet_lite0")), **SIZE)


COUNTED = Info(
    parameters=43_712_345, trainable=43_500_000, inference=94.4e9, training=280e9, denoising=301.239e9,
    size=(800, 1066), classes=91, objects=7,
)  # fmt: skip


def shown(config, counted: Info = COUNTED) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    console.print(report(resolved(config), counted))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip()]


def test_the_report_shows_the_papers_numbers_beside():
    paper = PaperRow(table=1, row="DN-DETR-R50", ap=44.1, params_m=44, gflops=94)
    *rows, first, second = shown(replace(tiny_config(), paper=paper))
    assert rows == [
        "counted paper",
        "parameters 43.71 M 44 M",
        "of them trainable 43.50 M -",
        "inference 94.40 G 94 G",
        "training step, 7 objects, without denoising 280.00 G -",
        "training step, 7 objects, with denoising 301.24 G -",
    ]
    assert first.startswith("Multiply-adds, which the paper calls GFLOPs, of one image of 800 x 1066 with 91 classes: ")
    assert f"{first} {second}".endswith("The paper (DN-DETR-R50, Table 1: 44.1 AP) does not state its image size.")


def test_a_row_of_the_paper_without_its_size():
    paper = PaperRow(table=2, row="DN-Deformable-DETR-R50", ap=43.4)
    assert shown(replace(tiny_config(), paper=paper))[1] == "parameters 43.71 M -"


def test_a_row_of_two_tables_names_both():
    paper = PaperRow(table=1, row="DETR-R50", ap=42.0, also=(7,))
    assert "(DETR-R50, Tables 1 and 7: 42.0 AP)" in " ".join(shown(replace(tiny_config(), paper=paper)))


def test_without_a_paper_there_is_nothing_beside():
    lines = shown(tiny_config(), replace(COUNTED, denoising=None))
    assert lines[1] == "parameters 43.71 M -"
    assert lines[5] == "training step, 7 objects, with denoising none -"
    assert "The paper (" not in " ".join(lines)
