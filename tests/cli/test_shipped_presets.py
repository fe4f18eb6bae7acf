"""The presets that come with dndetr, against the numbers printed in the paper."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from dndetr.config import PaperRow
from dndetr.info import build, info
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.resolve import FOLDER, list_presets, load_preset, to_yaml

KEYS = Path(__file__).resolve().parents[3] / "shared" / "official" / "keys"

# Tables 1 to 4 and 7: preset -> (table, row, epochs, AP, GFLOPs, parameters in millions)
PAPER = {
    "dab-r50-50ep": (1, "DAB-DETR-R50", 50, 42.2, 94, 44),
    "dn-dab-r50-50ep": (1, "DN-DETR-R50", 50, 44.1, 94, 44),
    "dab-r101-50ep": (1, "DAB-DETR-R101", 50, 43.5, 174, 63),
    "dn-dab-r101-50ep": (1, "DN-DETR-R101", 50, 45.2, 174, 63),
    "dab-dc5-r50-50ep": (1, "DAB-DETR-DC5-R50", 50, 44.5, 202, 44),
    "dn-dab-dc5-r50-50ep": (1, "DN-DETR-DC5-R50", 50, 46.3, 202, 44),
    "dab-dc5-r101-50ep": (1, "DAB-DETR-DC5-R101", 50, 45.8, 282, 63),
    "dn-dab-dc5-r101-50ep": (1, "DN-DETR-DC5-R101", 50, 47.3, 282, 63),
    "dab-dc5-r50-12ep": (2, "DAB-DETR-DC5-R50", 12, 38.0, 216, 44),
    "dn-dab-dc5-r50-12ep": (2, "DN-DETR-DC5-R50", 12, 41.7, 216, 44),
    "deform-r50-12ep": (2, "Deformable DETR-R50 1x", 12, 37.2, 173, 40),
    "dn-deform-r50-12ep": (2, "DN-Deformable-DETR-R50", 12, 43.4, 195, 48),
    "dn-deform-pp-r50-12ep": (2, "DN-Deformable-DETR-R50++", 12, 46.0, None, 47),
    "dab-dc5-r101-12ep": (2, "DAB-DETR-DC5-R101", 12, 40.3, 282, 63),
    "dn-dab-dc5-r101-12ep": (2, "DN-DETR-DC5-R101", 12, 42.8, 282, 63),
    "dn-deform-r101-12ep": (2, "DN-Deformable-DETR-R101", 12, 44.1, 275, 67),
    "deform-r50-50ep": (4, "Deformable DETR-R50", 50, 43.8, 173, 40),
    "dab-deform-r50-50ep": (4, "DAB-Deformable-DETR-R50", 50, 46.9, 195, 48),
    "dn-deform-r50-50ep": (4, "DN-Deformable-DETR-R50", 50, 48.6, 195, 48),
    "dn-deform-pp-r50-50ep": (4, "DN-Deformable-DETR-R50++", 50, 49.5, None, 47),
    "dn-dab-dc5-r50-25ep": (7, "DN-DETR-DC5-R50", 25, 44.4, 202, 44),
    "dn-deform-r50-25ep": (7, "DN-Deformable-DETR-R50", 25, 46.8, 195, 48),
    "dab-deform-pp-r50-50ep": (7, "DAB-Deformable-DETR-R50++", 50, 48.7, None, 47),
    "dn-deform-pp-r50-25ep": (7, "DN-Deformable-DETR-R50++", 25, 48.4, None, 47),
    "anchor-r50-50ep": (1, "Anchor DETR-R50", 50, 42.1, None, 39),
    "anchor-r101-50ep": (1, "Anchor DETR-R101", 50, 43.5, None, 58),
    "anchor-dc5-r50-50ep": (1, "Anchor DETR-DC5-R50", 50, 44.2, 151, 39),
    "anchor-dc5-r101-50ep": (1, "Anchor DETR-DC5-R101", 50, 45.1, None, 58),
    "anchor-dc5-r50-12ep": (3, "Anchor-DETR-DC5-R50", 12, 38.2, None, 37),
    "dn-anchor-dc5-r50-12ep": (3, "DN-Anchor-DETR-DC5-R50", 12, 39.4, None, 37),
}
SMALL = ["anchor-tiny", "dab-tiny", "deform-tiny", "dn-anchor-tiny", "dn-dab-tiny", "dn-deform-lite", "dn-deform-tiny"]
ALL = sorted([*PAPER, *SMALL])
DROPS = {50: 40, 25: 20, 12: 11}

rows = pytest.mark.parametrize("name", PAPER)
every = pytest.mark.parametrize("name", ALL)


def is_plain(name: str) -> bool:
    """Deformable DETR itself, whose reference trains in its own way."""
    return name in ("deform-r50-50ep", "deform-r50-12ep")


def is_anchor(name: str) -> bool:
    return "anchor-" in name


def parameters(name: str, *overrides: str) -> int:
    model = build(load_preset(name, overrides).config, 91)
    return sum(p.numel() for p in model.parameters())


def lines(name: str) -> list[str]:
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()


def test_these_presets_and_no_others():
    assert [summary.name for summary in list_presets()] == ALL


@every
def test_the_first_line_describes_the_preset(name):
    assert re.fullmatch(r"# \S.{20,110}", lines(name)[0])


@rows
def test_the_description_of_a_row_is_the_row(name):
    table, row, epochs, ap, gflops, params = PAPER[name]
    work = f"{gflops} GFLOPs" if gflops else "GFLOPs not given"
    assert lines(name)[0] == f"# {row}, {epochs} epochs (Table {table}): {ap} AP, {params}M parameters, {work}"


@every
def test_the_second_line_is_a_command_that_trains_it(name):
    command = re.fullmatch(r"#   (?:torchrun --nproc-per-node 8 -m dndetr|dndetr) train (.*)", lines(name)[1])
    flag, preset, *overrides = shlex.split(command[1])
    assert (flag, preset) == ("--preset", name)
    load_preset(name, overrides)


@every
def test_a_preset_shows_its_settings_as_they_load_again(name, tmp_path):
    resolved = load_preset(name)
    (tmp_path / "again.yaml").write_text(to_yaml(resolved), encoding="utf-8")
    assert load_preset(tmp_path / "again.yaml").config == resolved.config


@rows
def test_the_row_of_the_paper(name):
    table, row, epochs, ap, gflops, params = PAPER[name]
    config = load_preset(name).config
    assert config.paper == PaperRow(table=table, row=row, ap=ap, params_m=params, gflops=gflops)
    assert (config.train.epochs, config.train.drop_epoch) == (epochs, DROPS[epochs])
    assert config.backbone.name == ("resnet101" if "R101" in row else "resnet50")
    assert config.backbone.dilation is ("DC5" in row)
    assert config.backbone.weights == "default"
    hosts = {"Deformable": "deformable_detr", "Anchor": "anchor_detr"}
    assert config.host.name == next((host for word, host in hosts.items() if word in row), "dab_detr")


@rows
def test_the_setup_of_the_paper(name):
    config = load_preset(name).config
    host, train = config.host, config.train
    assert (host.queries, host.hidden, host.encoder_layers, host.decoder_layers) == (300, 256, 6, 6)
    assert train.weight_decay == 1e-4
    batch = 8 if is_anchor(name) and train.epochs == 50 else 16
    assert (train.lr, train.backbone_lr, train.batch_size) == ((2e-4, 2e-5, 32) if is_plain(name) else (1e-4, 1e-5, batch))
    assert host.ffn == (1024 if is_plain(name) or is_anchor(name) else 2048)
    assert (train.accumulate, train.warmup_steps, train.ema) == (1, 0, 0.0)


@rows
def test_the_form_of_the_decoder(name):
    table, row, *_ = PAPER[name]
    host = load_preset(name).config.host
    if is_anchor(name):
        assert (host.patterns, host.attention, host.anchors, host.levels) == (3, "row_column", "learned", 1)
    elif "Deformable" not in row:
        assert host.patterns == (3 if table == 2 else 0)
    elif is_plain(name):
        assert (host.query, host.refine, host.decoder, host.levels) == ("point", False, "deformable", 4)
    elif "++" in row:
        assert (host.query, host.decoder, host.patterns, host.levels) == ("box", "deformable", 0, 4)
    else:
        assert (host.query, host.decoder, host.patterns, host.levels) == ("box", "dense", 3, 4)


@rows
def test_denoising_as_in_the_paper_or_none(name):
    table, row, *_ = PAPER[name]
    groups = 10 if re.fullmatch(r"DN-Deformable-DETR-R\d+", row) else 5
    scale = 0.0 if is_anchor(name) else 0.4  # points have a centre alone (Sec. 4.7.1)
    noise = NoiseConfig(groups=groups, center_shift=0.4, box_scale=scale, label_flip=0.2, labels=True, isolated=True)
    assert load_preset(name).config.noise == (noise if row.startswith("DN-") else None)


@every
def test_the_name_says_whether_there_is_denoising(name):
    assert (load_preset(name).config.noise is not None) == name.startswith("dn-")


@pytest.mark.parametrize(
    ("baseline", "name"),
    [
        *((f"dab-{form}", f"dn-dab-{form}") for form in ("r50-50ep", "r101-50ep", "dc5-r50-50ep", "dc5-r101-50ep")),
        *((f"dab-{form}", f"dn-dab-{form}") for form in ("dc5-r50-12ep", "dc5-r101-12ep", "tiny")),
        *((f"dab-{form}", f"dn-{form}") for form in ("deform-r50-50ep", "deform-pp-r50-50ep")),
        ("deform-tiny", "dn-deform-tiny"),
        *((f"anchor-{form}", f"dn-anchor-{form}") for form in ("dc5-r50-12ep", "tiny")),
    ],
)
def test_a_baseline_differs_by_nothing_but_the_denoising(baseline, name):
    one, other = load_preset(baseline).tree, load_preset(name).tree
    assert {block for block in one if one[block] != other[block]} - {"paper"} == {"noise"}


@pytest.mark.parametrize("name", SMALL)
def test_small_presets_are_no_rows_of_the_paper(name):
    assert load_preset(name).config.paper is None


@rows
def test_the_size_of_a_row(name):
    """Table 1 prints two millions more for Anchor DETR than Table 3 and than the reference has."""
    printed = PAPER[name][-1] - (2 if is_anchor(name) and PAPER[name][0] == 1 else 0)
    assert parameters(name) / 1e6 == pytest.approx(printed, abs=1.0)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("dn-dab-tiny", 1.0, 2.0),
        ("dab-tiny", 1.0, 2.0),
        ("dn-deform-tiny", 0.8, 1.5),
        ("deform-tiny", 0.8, 1.5),
        ("dn-anchor-tiny", 1.0, 2.0),
        ("anchor-tiny", 1.0, 2.0),
        ("dn-deform-lite", 3.0, 5.0),
    ],
)
def test_small_presets_are_small(name, least, most):
    if name.endswith("lite") and not find_spec("efficientnet_lite_pytorch"):
        pytest.skip("the package of dndetr[lite] is not installed")
    assert least < parameters(name) / 1e6 < most


@pytest.mark.parametrize(
    ("name", "overrides", "params"),
    [
        ("dn-dab-r50-50ep", [], 43.69),
        ("dn-deform-r50-50ep", ["host.patterns=0"], 48.49),
        ("dn-deform-pp-r50-50ep", [], 47.43),
    ],
)
def test_the_size_of_the_reference_in_millions(name, overrides, params):
    assert parameters(name, *overrides) / 1e6 == pytest.approx(params, abs=0.01)


@pytest.mark.parametrize(
    ("name", "overrides", "official"),
    [
        ("dn-dab-r50-50ep", [], "dn_dab_detr_r50"),
        ("dn-dab-r101-50ep", [], "dn_dab_detr_r101"),
        ("dn-dab-dc5-r50-50ep", [], "dn_dab_detr_r50_dc5"),
        ("dn-dab-dc5-r101-50ep", [], "dn_dab_detr_r101_dc5"),
        ("dn-dab-dc5-r50-12ep", [], "dn_dab_detr_r50_dc5_p3"),
        ("dn-deform-r50-50ep", [], "dn_dab_deformable_detr_deformable_encoder_only_r50_p3"),
        ("dn-deform-r50-50ep", ["host.patterns=0"], "dn_dab_deformable_detr_deformable_encoder_only_r50"),
        ("dn-deform-pp-r50-50ep", [], "dn_dab_deformable_detr_r50"),
        ("dn-deform-pp-r50-50ep", ["backbone.name=resnet101"], "dn_dab_deformable_detr_r101"),
        ("deform-r50-50ep", [], "deformable_detr_r50"),
        ("anchor-dc5-r50-50ep", [], "anchor_detr_r50_dc5"),
        ("anchor-dc5-r101-50ep", [], "anchor_detr_r101_dc5"),
        ("anchor-r50-50ep", ["host.attention=plain"], "anchor_detr_r50_mha"),
    ],
)
def test_the_size_of_the_reference_to_the_last_parameter(name, overrides, official):
    file = KEYS / f"{official}.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    ours = parameters(name, *overrides)
    if is_anchor(name):
        ours -= 92 * 255  # our label table, which tells objects
        ours += 2 * (256 * 256 + 256) * official.endswith("mha")  # a perceptron that is there of no use
    assert ours == json.loads(file.read_text())["num_parameters"]


def test_multiply_adds_of_dn_detr_and_what_denoising_adds():
    counted = info(load_preset("dn-dab-r50-50ep"), height=800, width=1066, num_classes=91, objects=7)
    assert counted.inference == pytest.approx(86.6e9, rel=5e-3)
    assert 2.4 < counted.training / counted.inference < 3
    # 5 groups of 7: the feed-forward layers alone take 6 x 2 x 256 x 2048 = 6.3 M a box; attention makes it about 20 M.
    # Forward and backward are three times that.
    assert 0.012e9 < (counted.denoising - counted.training) / (3 * 5 * 7) < 0.03e9
    assert (counted.size, counted.classes, counted.objects) == ((800, 1066), 91, 7)
    assert counted.trainable < counted.parameters


def test_denoising_takes_more_the_more_groups_there_are():
    def added(groups: int) -> float:
        counted = info(load_preset("dn-dab-tiny", [f"noise.groups={groups}"]), height=96, width=96, num_classes=6)
        return counted.denoising - counted.training

    assert added(10) == pytest.approx(2 * added(5), rel=0.25)


def test_a_baseline_counts_no_denoising():
    assert info(load_preset("dab-tiny"), height=96, width=96, num_classes=6).denoising is None


@pytest.mark.parametrize("name", ["dn-deform-tiny", "deform-r50-50ep", "dn-deform-pp-r50-50ep", "dn-deform-r50-50ep"])
def test_every_kind_of_decoder_is_counted(name):
    counted = info(load_preset(name), height=128, width=128, objects=2)
    assert counted.inference < counted.training < (counted.denoising or float("inf"))
