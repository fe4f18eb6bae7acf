"""Presets written as a user would; errors are compared whole."""

from pathlib import Path

import pytest
import yaml

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.hosts import HOSTS
from dndetr.models.hosts.dab_detr import DabDetrConfig
from dndetr.models.hosts.deformable_detr import DeformableDetrConfig
from dndetr.resolve import from_tree, list_presets, load_preset, summary, to_tree, to_yaml

DAB = "host: {name: dab_detr}\n"
ANY = " or ".join(HOSTS)
DEFORM = "host: {name: deformable_detr}\n"
SEE = "(see `dndetr presets`; the path of a file ends in .yaml)"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str):
    Path("p.yaml").write_text(text, encoding="utf-8")
    return load_preset("p.yaml", overrides)


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as error:
        load(text, *overrides)
    assert str(error.value) == "\n".join(error.value.lines)
    return list(error.value.lines)


def test_a_host_alone_is_the_paper_default():
    assert load(DAB).config == Config(host=DabDetrConfig())
    assert load(DEFORM).config == Config(host=DeformableDetrConfig())


def test_values_land_in_their_blocks():
    config = load(
        "host: {name: deformable_detr, decoder: dense, patterns: 3}\nnoise: {groups: 10, labels: false}\n"
        "data: {sizes: [32, 64], eval_size: 64}\ntrain: {lr: 1e-3, drop_epoch: 3}\n"
        "paper: {table: 4, row: mine, ap: 40}\n"
    ).config
    assert config.host == DeformableDetrConfig(decoder="dense", patterns=3)
    assert config.noise == NoiseConfig(groups=10, labels=False)
    assert (config.data.sizes, config.data.eval_size) == ((32, 64), 64)
    assert (config.train.lr, config.train.drop_epoch, config.train.epochs) == (1e-3, 3.0, 50)
    assert (config.paper.row, config.paper.ap, config.paper.gflops) == ("mine", 40.0, None)


def test_numbers_are_of_the_kind_that_the_setting_has():
    train = load(DAB, "train.lr=1").config.train
    assert (type(train.lr), type(train.epochs)) == (float, int)


@pytest.mark.parametrize(
    ("text", "overrides", "noise"),
    [
        ("", [], NoiseConfig()),
        ("noise: {}\n", [], NoiseConfig()),
        ("noise: null\n", [], None),
        ("noise:\n", [], None),
        ("", ["noise=null"], None),
        ("noise: {groups: 9}\n", ["noise=null"], None),
        ("noise: {groups: 9}\n", ["noise=null", "noise.label_flip=0.1"], NoiseConfig(label_flip=0.1)),
        ("noise: {groups: 9}\n", ["noise={label_flip: 0.1}"], NoiseConfig(groups=9, label_flip=0.1)),
        ("noise: null\n", ["noise.groups=3"], NoiseConfig(groups=3)),
        ("noise: null\n", ["noise={}"], NoiseConfig()),
    ],
)
def test_noise_is_switched_off_and_on(text, overrides, noise):
    assert load(DAB + text, *overrides).config.noise == noise


def test_the_last_override_wins():
    assert load(DAB, "train.epochs=3", "train.epochs=4").config.train.epochs == 4


def test_a_corrected_override_is_no_mistake():
    assert load(DAB, "train.epochs=many", "train.epochs=4").config.train.epochs == 4


def test_the_source_of_every_value():
    Path("base.yaml").write_text("host: {name: dab_detr, queries: 9}\ntrain:\n  lr: 1e-3\n  epochs: 3\n")
    resolved = load("extends: base\n\ntrain: {epochs: 4}\nnoise: null\n", "train.seed=7")
    assert resolved.sources["host.queries"] == "base.yaml:1"
    assert resolved.sources["train.lr"] == "base.yaml:3"
    assert resolved.sources["train.epochs"] == "p.yaml:3"
    assert resolved.sources["noise"] == "p.yaml:4"
    assert resolved.sources["train.seed"] == "override"
    assert resolved.sources["train.clip"] == "default"


def test_what_is_extended_lies_beside_the_file(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "dn-dab-tiny.yaml").write_text("host: {name: dab_detr, queries: 9}\n")
    (folder / "sub" / "mine.yaml").write_text("extends: dn-dab-tiny\n")
    assert load_preset("sub/mine.yaml").config.host.queries == 9


def test_a_preset_of_dndetr_is_extended_by_its_name():
    resolved = load("extends: dn-dab-tiny\nhost: {queries: 9}\n")
    assert (resolved.config.host.queries, resolved.config.host.hidden) == (9, 128)
    assert resolved.sources["host.hidden"].startswith("presets/dn-dab-tiny.yaml:")


def test_the_paper_numbers_are_not_inherited():
    assert load_preset("dn-dab-r50-50ep").config.paper is not None
    assert load("extends: dn-dab-r50-50ep\ntrain: {epochs: 3}\n").config.paper is None


def test_a_preset_is_found_by_name_and_by_path():
    Path("mine.yaml").write_text(DAB)
    assert load_preset("mine.yaml").config == load_preset(Path("mine.yaml")).config == load_preset("./mine.yaml").config
    assert load_preset("dn-dab-tiny").config.host.queries == 50


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("dn-dab-tin", f"unknown preset 'dn-dab-tin'; did you mean dn-dab-tiny or dab-tiny or dn-sam-tiny? {SEE}"),
        ("zzz", f"unknown preset 'zzz' {SEE}"),
        ("mine", f"unknown preset 'mine' {SEE}"),
        ("mine.yml", "mine.yml: no such preset file"),
        ("sub/mine", "sub/mine: no such preset file"),
        (Path("mine"), "mine: no such preset file"),
        (".yaml", ".yaml: no such preset file"),
    ],
)
def test_an_unknown_preset(name, error):
    Path("mine.yaml").write_text(DAB)
    with pytest.raises(UserError) as raised:
        load_preset(name)
    assert raised.value.lines == (error,)


# every mistake, in full


def test_all_mistakes_at_once_in_the_order_of_the_files():
    Path("base.yaml").write_text("host:\n  name: dab_detr\n  querys: 3\n")
    assert mistakes(
        "extends: base\n"
        "train:\n"
        "  epochs: 0\n"
        "  lr: fast\n"
        "  lr: 3\n"
        "noise: {group: 5, box_scale: big, label_flip: 3}\n"
        "eval: 3\n"
        "\n"
        "\n"
        "lr: 3\n",
        "nonsense",
        "train.ema=2",
    ) == [
        "base.yaml:3: unknown key 'host.querys', did you mean host.queries?",
        "p.yaml:3: train.epochs must be above 0, got 0",
        "p.yaml:5: 'train.lr' is given twice, first at p.yaml:4",
        "p.yaml:6: noise.box_scale must be a number, got 'big'",
        "p.yaml:6: noise.label_flip must be from 0 to 1, got 3.0",
        "p.yaml:6: unknown key 'noise.group', did you mean noise.groups?",
        "p.yaml:7: eval must be a block of settings, got 3",
        "p.yaml:10: unknown key 'lr', did you mean train.lr?",
        "override 'nonsense': an override is key=value, for example train.lr=1e-4",
        "override 'train.ema=2': train.ema must be from 0 to below 1, got 2.0",
    ]


def test_a_wrong_name_and_a_wrong_type_in_one_block():
    assert mistakes(DAB + "noise: {group: 5, box_scale: big}\n") == [
        "p.yaml:2: noise.box_scale must be a number, got 'big'",
        "p.yaml:2: unknown key 'noise.group', did you mean noise.groups?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [f"p.yaml: host.name is missing, it must be {ANY}"]),
        ("host: {queries: 9}\n", [f"p.yaml: host.name is missing, it must be {ANY}"]),
        (
            "host: {name: dab_dtr}\n",
            [f"p.yaml:1: host.name must be {ANY}, got 'dab_dtr', did you mean dab_detr?"],
        ),
        ("host: {name: yolo}\n", [f"p.yaml:1: host.name must be {ANY}, got 'yolo'"]),
        ("host: {name: 3}\n", [f"p.yaml:1: host.name must be {ANY}, got 3"]),
        (
            "host: {name: dab_dtr,\n  temprature: 3, points: 2}\n",
            [
                f"p.yaml:1: host.name must be {ANY}, got 'dab_dtr', did you mean dab_detr?",
                "p.yaml:2: unknown key 'host.temprature', did you mean host.temperature?",
            ],
        ),
        (
            "host: {name: dab_detr, query: point}\n",
            ["p.yaml:1: host.query belongs to deformable_detr, but host.name is dab_detr"],
        ),
        (
            "host: {name: deformable_detr, temperature: 20}\n",
            ["p.yaml:1: host.temperature belongs to dab_detr, but host.name is deformable_detr"],
        ),
        ("host: dab_detr\n", ["p.yaml:1: host must be a block of settings, got 'dab_detr'"]),
    ],
)
def test_mistakes_in_the_host(text, expected):
    assert mistakes(text) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trian: {lr: 3}", "unknown key 'trian.lr', did you mean train.lr?"),
        ("train: {lrr: 3}", "unknown key 'train.lrr', did you mean train.lr?"),
        ("train: {groups: 3}", "unknown key 'train.groups', did you mean noise.groups?"),
        ("batch_size: 8", "unknown key 'batch_size', did you mean train.batch_size?"),
        ("groups: 3", "unknown key 'groups', did you mean noise.groups?"),
        ("zzzz: 3", "unknown key 'zzzz'"),
        ("train: {zzzz: 3}", "unknown key 'train.zzzz'"),
        ("train: {lr: {base: 3}}", "unknown key 'train.lr.base', did you mean train.lr?"),
        ("data: {root: {a: 1}}", "unknown key 'data.root.a', did you mean data.root?"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(line, expected):
    assert mistakes(f"{DAB}{line}\n") == [f"p.yaml:2: {expected}"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train: {epochs: true}", "train.epochs must be a whole number, got true"),
        ("train: {epochs: 1.5}", "train.epochs must be a whole number, got 1.5"),
        ("train: {epochs: null}", "train.epochs must be a whole number, got null"),
        ("train: {lr: yes}", "train.lr must be a number, got 'yes'"),
        ("train: {lr: true}", "train.lr must be a number, got true"),
        ("train: {lr: [1]}", "train.lr must be a number, got [1]"),
        ("data: {crop: yes}", "data.crop must be true or false, got 'yes'"),
        ("data: {crop: 1}", "data.crop must be true or false, got 1"),
        ("data: {root: 2017}", 'data.root must be text, got 2017; as text: "2017", on the command line \'data.root="2017"\''),
        (
            "task: {classes: [1, 2]}",
            'task.classes must be a list, each entry text, got 2; as text: ["2"], on the command line \'task.classes=["2"]\'',
        ),
        ("data: {sizes: 32}", "data.sizes must be a list, got 32"),
        ("data: {sizes: [32, x]}", "data.sizes must be a list, each entry a whole number, got 'x'"),
        ("train: {precision: fp61}", "train.precision must be fp32 or bf16 or fp16, got 'fp61', did you mean fp16?"),
        ("train: {precision: 16}", "train.precision must be fp32 or bf16 or fp16, got 16, did you mean fp16?"),
        ("op: nativ", "op must be auto or native or torch, got 'nativ', did you mean native?"),
        ("op: null", "op must be auto or native or torch, got null"),
        ("op: [torch]", 'op must be auto or native or torch, got ["torch"], did you mean torch?'),
        ("op: {use: torch}", "unknown key 'op.use'"),
        ("data: shapes", "data must be a block of settings, got 'shapes'"),
        ("data: null", "data must be a block of settings, got null"),
        ("noise: 5", "noise must be a block of settings or null, got 5"),
        ("noise: false", "noise must be a block of settings or null, got false"),
        ("noise: []", "noise must be a block of settings or null, got []"),
    ],
)
def test_a_value_of_the_wrong_type(line, expected):
    assert mistakes(f"{DAB}{line}\n") == [f"p.yaml:2: {expected}"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train: {epochs: 0}", "train.epochs must be above 0, got 0"),
        ("train: {lr: -1}", "train.lr must be above 0, got -1.0"),
        ("train: {ema: 1}", "train.ema must be from 0 to below 1, got 1.0"),
        ("train: {seed: -1}", "train.seed must be 0 or more, got -1"),
        ("noise: {groups: 0}", "noise.groups must be 1 or more (no denoising is `noise: null`), got 0"),
        ("noise: {label_flip: 1.1}", "noise.label_flip must be from 0 to 1, got 1.1"),
        ("noise: {center_shift: -0.1}", "noise.center_shift must be from 0 to 1, got -0.1"),
        ("noise: {box_scale: 2}", "noise.box_scale must be from 0 to 1, got 2.0"),
        ("data: {workers: -1}", "data.workers must be 0 or more, got -1"),
        ("data: {flip: 1.5}", "data.flip must be from 0 to 1, got 1.5"),
        ("data: {vertical_flip: -1}", "data.vertical_flip must be from 0 to 1, got -1.0"),
        ("data: {eval_size: 0}", "data.eval_size must be above 0, got 0"),
        ("eval: {top: 0}", "eval.top must be above 0, got 0"),
        ("match: {giou: -1}", "match.giou must be 0 or more, got -1.0"),
        ("loss: {alpha: 2}", "loss.alpha must be from 0 to 1, got 2.0"),
        ("backbone: {name: small}", "backbone.weights must be none or a path (small has no ImageNet weights), got 'default'"),
    ],
)
def test_a_value_out_of_range(line, expected):
    assert mistakes(f"{DAB}{line}\n") == [f"p.yaml:2: {expected}"]


@pytest.mark.parametrize("sizes", ["[]", "[0]", "[32, -1]"])
def test_sizes_are_lengths(sizes):
    assert mistakes(f"{DAB}data: {{sizes: {sizes}}}\n")[0].startswith("p.yaml:2: data.sizes must be a list of lengths above 0")


@pytest.mark.parametrize("value", ["1e999", "!!float nan", "!!float inf"])
def test_numbers_are_finite(value):
    assert len(mistakes(f"{DAB}train: {{lr: {value}}}\n")) == 1


def test_what_a_block_lacks_is_named():
    assert mistakes(DAB + "\npaper: {table: 1}\n") == ["p.yaml:3: paper.ap is missing", "p.yaml:3: paper.row is missing"]


def test_rules_of_a_host():
    assert mistakes(
        "host: {name: deformable_detr, query: point, decoder: dense, heads: 3}\nnoise: null\n",
    ) == [
        "p.yaml:1: host.hidden must be a multiple of 4 and of heads (3), got 256",
        "p.yaml:1: host.query must be box with decoder: dense, got 'point'",
    ]
    assert mistakes(DEFORM + "\n", "host.patterns=3") == [
        "override 'host.patterns=3': host.patterns must be 0 unless decoder is dense, then 0 or more, got 3"
    ]
    assert mistakes(DEFORM, "host.decoder=dense", "host.decoder_points=3") == [
        "override 'host.decoder_points=3': host.decoder_points must be null unless decoder is deformable, then null or above "
        "0, got 3"
    ]


def test_a_rule_about_a_value_of_the_wrong_type_says_nothing():
    assert mistakes("host: {name: deformable_detr, decoder: dens, patterns: 3}\n") == [
        "p.yaml:1: host.decoder must be deformable or dense, got 'dens', did you mean dense?"
    ]
    assert mistakes("host: {name: dab_detr, heads: x, hidden: 30}\n") == [
        "p.yaml:1: host.heads must be a whole number, got 'x'"
    ]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (
            "host: {name: deformable_detr, query: point}\nnoise: {groups: 5}\n",
            [],
            "p.yaml:2: noise must be null with host.query: point, whose queries are no boxes",
        ),
        (
            "host: {name: deformable_detr, query: point}\nnoise: {}\n",
            [],
            "p.yaml:2: noise must be null with host.query: point, whose queries are no boxes",
        ),
        (
            "host: {name: smca, scales: 4}\nnoise: null\nbackbone: {dilation: true}\n",
            [],
            "p.yaml:3: backbone.dilation must be false with several host.scales, each half as fine as the last",
        ),
        (
            DAB + "train:\n  batch_size: 10\n  accumulate: 4\n",
            [],
            "p.yaml:4: train.accumulate must be a divisor of batch_size (10), got 4",
        ),
        (
            DAB,
            ["train.accumulate=3"],
            "override 'train.accumulate=3': train.accumulate must be a divisor of batch_size (16), got 3",
        ),
        (DAB + "data: {max_size: 700}\n", [], "p.yaml:2: data.max_size must be at least eval_size (800), got 700"),
        (DAB + "data: {eval_size: 1400}\n", [], "p.yaml:2: data.max_size must be at least eval_size (1400), got 1333"),
        (
            DAB,
            ["data.eval_size=1400"],
            "override 'data.eval_size=1400': data.max_size must be at least eval_size (1400), got 1333",
        ),
    ],
)
def test_rules_across_blocks(text, overrides, expected):
    assert mistakes(text, *overrides) == [expected]


def test_points_as_queries_do_without_noise():
    assert load("host: {name: deformable_detr, query: point}\nnoise: null\n").config.noise is None


def test_rules_and_wrong_types_at_once():
    assert mistakes(DAB + "data: {max_size: 700}\ntrain: {accumulate: 3, lr: x}\n") == [
        "p.yaml:2: data.max_size must be at least eval_size (800), got 700",
        "p.yaml:3: train.accumulate must be a divisor of batch_size (16), got 3",
        "p.yaml:3: train.lr must be a number, got 'x'",
    ]


def test_a_file_is_extended_from_beside_it(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "base.yaml").write_text(DAB + "train: {epochs: 3}\n")
    for name in ("base", "base.yaml"):
        (tmp_path / "far" / "p.yaml").write_text(f"extends: {name}\n")
        assert load_preset(tmp_path / "far" / "p.yaml").config.train.epochs == 3


def test_extending_goes_one_level():
    assert mistakes("\nextends: dab-tiny\n" + DAB) == [
        "p.yaml:2: extends dab-tiny, which extends dn-dab-tiny; only one level is allowed"
    ]


def test_a_preset_does_not_extend_itself():
    assert mistakes("extends: p\n" + DAB) == ["p.yaml:1: extends p, which extends p; only one level is allowed"]


def test_extending_what_is_not_there():
    assert mistakes("extends: dn-dab-tin\n" + DAB) == [
        f"p.yaml:1: extends: unknown preset 'dn-dab-tin'; did you mean dn-dab-tiny or dab-tiny or dn-sam-tiny? {SEE}"
    ]
    assert mistakes("extends: x/y\n" + DAB) == ["p.yaml:1: extends: x/y: no such preset file"]


def test_what_cannot_be_extended_is_all_that_is_said_of_what_it_would_hold():
    assert mistakes("extends: zzz\ntrain: {lr: 3}\n") == [f"p.yaml:1: extends: unknown preset 'zzz' {SEE}"]


def test_what_is_extended_must_be_yaml():
    Path("base.yaml").write_text("a: b: c\n")
    assert mistakes("extends: base\n" + DAB) == [
        "p.yaml:1: extends: base.yaml:1: not valid YAML: mapping values are not allowed here"
    ]


def test_mistakes_in_the_presets_of_dndetr_name_them_by_their_folder():
    assert mistakes("extends: dn-dab-tiny\nhost: {name: deformable_detr}\n", "host.temperature=3") == [
        "override 'host.temperature=3': host.temperature belongs to dab_detr, but host.name is deformable_detr"
    ]
    with pytest.raises(UserError) as error:
        load_preset("deform-r50-50ep", ["host.name=dab_detr"])
    assert error.value.lines == tuple(
        f"presets/deform-r50-50ep.yaml:5: host.{name} belongs to deformable_detr, but host.name is dab_detr"
        for name in ("query", "refine")
    )


# trees, YAML and lists


def test_a_tree_is_the_settings_again():
    config = load("host: {name: deformable_detr, decoder: dense}\nnoise: null\ndata: {sizes: [32]}\n").config
    tree = to_tree(config)
    assert tree["data"]["sizes"] == [32]
    assert tree["noise"] is None
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree
    assert from_tree(tree) == config


def test_a_tree_from_before_a_setting_was_there_has_its_default():
    tree = to_tree(load(DEFORM).config)
    del tree["host"]["decoder_points"]
    assert from_tree(tree).host.decoder_points is None


def test_mistakes_in_a_tree_begin_with_its_origin():
    with pytest.raises(UserError) as error:
        from_tree({"host": {"name": "dab_detr", "quries": 3}, "train": {"lr": "x"}}, "last.pt")
    assert error.value.lines == (
        "last.pt: train.lr must be a number, got 'x'",
        "last.pt: unknown key 'host.quries', did you mean host.queries?",
    )


def reloaded(resolved):
    Path("again.yaml").write_text(to_yaml(resolved), encoding="utf-8")
    return load_preset("again.yaml")


def test_settings_as_yaml():
    text = to_yaml(load(DAB + "noise: null\ndata: {sizes: [32, 64]}\n", "train.lr=2e-5"))
    lines = text.splitlines()
    assert lines[0] == "host:"
    assert lines[1] == "  name: dab_detr        # p.yaml:1"
    assert "noise: null             # p.yaml:2" in lines
    assert "  sizes: [32, 64]       # p.yaml:3" in lines
    assert "  lr: 2.0e-05           # override" in lines
    assert lines[-1] == "paper: null             # default"
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize("text", [DAB, DAB + "noise: null\n", "extends: dn-deform-r50-50ep\npaper: {table: 1, row: x, ap: 2}"])
def test_settings_as_yaml_are_a_preset_with_the_same_settings(text):
    resolved = load(text)
    again = reloaded(resolved)
    assert again.config == resolved.config
    assert "default" not in again.sources.values()


@pytest.mark.parametrize(
    "root",
    ["1e4", "1E-5", "2017", "010", "yes", "null", "~", "", " a", "a # b", "a: b", "[x]", "it's", 'a"b', "ä", "a\nb", "x" * 99],
)
def test_text_stays_text_in_yaml(root):
    config = from_tree({"host": {"name": "dab_detr"}, "data": {"root": root}})
    Path("p.yaml").write_text(yaml.safe_dump({"host": {"name": "dab_detr"}}))
    resolved = load_preset("p.yaml", [f"data.root={yaml.safe_dump(root, default_style=chr(34))}"])
    assert resolved.config == config
    assert reloaded(resolved).config == config


def test_the_summary_is_the_paper_row_and_what_is_set():
    Path("p.yaml").write_text("host: {name: x}\npaper: {table: 1, ap: 1e1}\n")
    row = {"table": 1, "ap": 10.0}
    assert summary(Path("p.yaml")) == ("p", row, {"host.name": "x", "paper.table": 1, "paper.ap": 10.0})
    Path("q.yaml").write_text("extends: p\nnoise: null\n")
    assert summary(Path("q.yaml")) == ("q", {}, {"host.name": "x", "noise": None})
    Path("p.yaml").write_text("")
    assert summary(Path("p.yaml")) == ("p", {}, {})


def test_presets_are_listed_by_name():
    names = [entry.name for entry in list_presets()]
    assert names == sorted(names)
    assert "dn-deform-tiny" in names
