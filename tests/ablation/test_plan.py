"""The studies that come with dndetr change what they say and nothing else; mistakes in a file are told with their lines."""

from pathlib import Path

import pytest

from dndetr.ablation.plan import FOLDER, read_study, shipped
from dndetr.ablation.runs import plan_trials
from dndetr.console import UserError
from dndetr.resolve import FOLDER as PRESETS
from dndetr.resolve import leaves, list_presets, load_preset
from dndetr.settings import Place, parse_override

# row -> what it changes of the preset dn-deform-tiny; None: the whole block is null
CHANGES = {
    "components": {
        "box + label + mask": {"noise.groups": 1},
        "box + mask": {"noise.groups": 1, "noise.labels": False},
        "none": None,
        "without mask": {"noise.groups": 1, "noise.isolated": False},
        "label + mask": {"noise.groups": 1, "noise.center_shift": 0.0, "noise.box_scale": 0.0},
        "without mask, 5 groups": {"noise.isolated": False},
    },
    "groups": {"no group": None, "1 group": {"noise.groups": 1}, "5 groups": {}, "10 groups": {"noise.groups": 10}},
    "noise": {
        "both 0.4": {"train.drop_epoch": 1000.0},
        **{
            f"{name} {scale}": {"train.drop_epoch": 1000.0, f"noise.{name}": scale}
            for name in ("center_shift", "box_scale")
            for scale in (0.2, 0.6, 0.8, 1.0)
        },
    },
    "denoising": {"none": None, "denoising": {}},
    "speedup": {
        "baseline": None,
        "denoising, half the epochs": {"train.epochs": 6, "train.drop_epoch": 5.1},
        "denoising, all epochs": {},
    },
}


def planned(name, tmp_path, preset="dn-deform-tiny", overrides=(), seeds=(0,)):
    study = read_study(name)
    return study, plan_trials(study, preset, overrides, seeds, tmp_path)


def test_the_shipped_studies_are_these():
    assert shipped() == sorted(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_every_row_differs_from_the_preset_in_exactly_what_it_names(name, tmp_path):
    study, trials = planned(name, tmp_path, seeds=[7])
    assert (study.preset, [trial.row.name for trial in trials]) == ("dn-deform-tiny", list(CHANGES[name]))
    before = leaves(load_preset("dn-deform-tiny").tree)
    for trial in trials:
        after, expected = leaves(trial.resolved.tree), CHANGES[name][trial.row.name]
        changed = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        if expected is None:
            expected = {key: None for key in before if key.startswith("noise.")}
        assert changed == {**expected, "train.seed": 7}, trial.row.name
        named = {
            key for override in (*study.base, *trial.row.set) for key in parse_override(override.text, Place(0, 0, ""))[0]
        }
        named |= {"train.epochs", "train.drop_epoch"} if trial.row.epochs != 1 else set()
        assert {key for key in changed if not any(f"{key}.".startswith(f"{n}.") for n in named)} == {"train.seed"}


@pytest.mark.parametrize(
    ("name", "preset", "numbers"),
    [
        ("components", "dn-dab-r50-50ep", [43.4, 43.0, 42.2, 24.0, None, None]),
        ("groups", "dn-dab-r50-50ep", [42.2, 43.4, 44.1, None]),
        ("groups", "dn-dab-dc5-r50-50ep", [44.5, 45.6, 46.3, None]),
        ("groups", "dn-dab-r101-50ep", [43.5, 45.0, 45.2, None]),
        ("groups", "dn-dab-dc5-r101-50ep", [45.8, 46.5, 47.3, None]),
        ("noise", "dn-dab-r50-50ep", [None] * 9),
        ("denoising", "dn-dab-r50-50ep", [42.2, 44.1]),
        ("denoising", "dn-dab-dc5-r50-50ep", [44.5, 46.3]),
        ("denoising", "dn-dab-r101-50ep", [43.5, 45.2]),
        ("denoising", "dn-dab-dc5-r101-50ep", [45.8, 47.3]),
        ("denoising", "dn-deform-r50-50ep", [46.9, 48.6]),
        ("denoising", "dn-deform-pp-r50-50ep", [48.7, 49.5]),
        ("speedup", "dn-dab-dc5-r50-50ep", [44.5, 44.4, 46.3]),
        ("speedup", "dn-deform-r50-50ep", [46.9, 46.8, 48.6]),
        ("speedup", "dn-deform-pp-r50-50ep", [48.7, 48.4, 49.5]),
    ],
)
def test_the_papers_numbers_are_those_of_the_preset_in_use(name, preset, numbers, tmp_path):
    study, _ = planned(name, tmp_path, preset)  # every row is valid with it
    assert [row.paper_ap(preset) for row in study.rows] == [(number, "") for number in numbers]
    assert study.paper_source(preset) == ""


def test_with_another_preset_the_first_number_is_shown_and_its_preset_named():
    study = read_study("groups")
    assert study.rows[1].paper_ap("dn-deform-tiny") == (43.4, "dn-dab-r50-50ep")
    denoising = read_study("denoising")
    kin = [
        ("dn-anchor-tiny", "dn-anchor-dc5-r50-12ep"),
        ("vanilla.yaml", "dn-dab-r50-50ep"),
        ("dn-vanilla-tiny", "dn-vanilla-r50-300ep"),
    ]
    assert [denoising.rows[1].paper_ap(preset)[1] for preset, _ in kin] == [other for _, other in kin]
    assert study.paper_source("dn-deform-tiny") == "of dn-dab-r50-50ep"


def test_the_study_of_own_rates_changes_the_rate_of_the_baseline_alone(tmp_path):
    _, trials = planned(str(Path(__file__).parents[2] / "benchmarks" / "own-rates.yaml"), tmp_path)
    trains = [trial.resolved.config.train for trial in trials]
    assert [(t.lr, t.backbone_lr, t.epochs) for t in trains] == [(1e-3, 1e-3, 12), (2e-3, 2e-3, 6), (2e-3, 2e-3, 12)]
    assert [trial.resolved.config.noise is None for trial in trials] == [True, False, False]


def test_the_presets_that_a_study_names_are_there():
    for name in shipped():
        study = read_study(name)
        mapped = {preset for row in study.rows if isinstance(row.paper, dict) for preset in row.paper}
        for preset in {study.preset, *mapped}:
            assert (PRESETS / f"{preset}.yaml").is_file(), (name, preset)


def test_studies_are_no_presets():
    assert FOLDER.parent == PRESETS
    assert not {summary.name for summary in list_presets()} & set(shipped())


def test_the_half_of_a_schedule_drops_the_rate_at_the_same_share(tmp_path):
    _, trials = planned("speedup", tmp_path, overrides=["train.epochs=50", "train.drop_epoch=40"])
    assert [(t.epochs, t.resolved.config.train.drop_epoch) for t in trials] == [(50, 40), (25, 20), (50, 40)]


def test_overrides_hold_for_all_rows_and_a_rows_own_setting_wins(tmp_path):
    _, trials = planned("components", tmp_path, overrides=["noise.groups=3", "noise.labels=true", "train.lr=0.5"])
    first, box_only, none, *_ = (trial.resolved.config for trial in trials)
    assert (first.noise.groups, first.noise.labels, box_only.noise.labels, none.noise) == (3, True, False, None)
    assert {trial.resolved.config.train.lr for trial in trials} == {0.5}


def test_runs_have_folders_of_their_own_and_settings_that_say_where_they_come_from(tmp_path):
    _, trials = planned("components", tmp_path, overrides=["train.lr=0.5"], seeds=[3, 4])
    assert [str(trial.folder.relative_to(tmp_path)) for trial in trials[5:8]] == [
        "without-mask-5-groups/seed-3", "box-label-mask/seed-4", "box-mask/seed-4",
    ]  # fmt: skip
    sources = trials[7].resolved.sources
    assert sources["noise.labels"] == "presets/ablations/components.yaml:9"
    assert (sources["train.lr"], sources["data.root"]) == ("override", "presets/dn-deform-tiny.yaml:8")
    assert trials[7].resolved.config.train.seed == 4


WRONG = """\
table: five
preset: dn-deform-tiny
bass: [noise.groups=1]
against: [noise.box_skale]
rows:
  - {name: one, set: noise=null}
  - {name: One!, paper: {a: high}, epochs: 2}
  - {set: [], nmae: x}
  - {name: two, as_good_as: on}
"""


def test_all_mistakes_of_a_file_are_told_at_once_with_their_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(WRONG)
    with pytest.raises(UserError) as error:
        read_study("mine.yaml")
    assert error.value.lines == (
        "mine.yaml:1: table must be a whole number, got 'five'",
        "mine.yaml:3: unknown key 'bass' of a study, did you mean base?",
        "mine.yaml:4: against: unknown key 'noise.box_skale', did you mean noise.box_scale?",
        "mine.yaml:6: set must be a list of KEY=VALUE, such as [noise.groups=1], got 'noise=null'",
        'mine.yaml:7: paper must be a number, or a number for each of some presets, got {"a": "high"}',
        "mine.yaml:7: epochs must be a share of the preset's epochs, above 0 and at most 1, got 2",
        "mine.yaml:7: row 'One!' would share the folder one with 'one'",
        "mine.yaml:8: unknown key 'nmae' of a row, did you mean name?",
        "mine.yaml:8: name is missing, it must be text with a letter or a digit",
        "mine.yaml:9: as_good_as must be another row, got 'on', did you mean one?",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mine.yaml:1: a study holds `key: value` lines, with preset and rows among them"),
        ("[1]", "mine.yaml:1: a study holds `key: value` lines, with preset and rows among them"),
        ("preset: x\nrows: [{name: a}]", "mine.yaml:2: rows must be a list of two rows or more"),
        ("preset: x\nrows: [a, {name: b}]", "mine.yaml:2: a row holds `key: value` lines, with name among them"),
        ("preset: x\nrows: [", "mine.yaml:2: not valid YAML"),
        ("preset: x\npreset: y\nrows: [{name: a}, {name: b}]", "mine.yaml:2: 'preset' is given twice"),
    ],
)
def test_a_file_that_is_no_study_is_refused(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_study("mine.yaml")
    assert error.value.lines[0].startswith(said)


def test_wrong_settings_of_rows_are_told_with_the_line_of_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "\n  - {name: a, set: [noise.grups=1]}\n  - name: b\n    set:\n      - noise.labels=maybe\n"
    (tmp_path / "mine.yaml").write_text(f"preset: dn-deform-tiny\nrows:{rows}")
    with pytest.raises(UserError) as error:
        planned("mine.yaml", tmp_path, overrides=["train.lr=fast"], seeds=[0, 1])
    assert sorted(error.value.lines) == [
        "mine.yaml:3: unknown key 'noise.grups', did you mean noise.groups?",
        "mine.yaml:6: noise.labels must be true or false, got 'maybe'",
        "override 'train.lr=fast': train.lr must be a number, got 'fast'",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("component", "did you mean components"),
        ("xyz", "components, denoising, groups, noise, speedup"),
        ("no.yaml", "no such study file"),
    ],
)
def test_a_study_that_is_not_there_is_told(name, said):
    with pytest.raises(UserError, match=said):
        read_study(name)


def test_the_seed_is_no_override(tmp_path):
    with pytest.raises(UserError, match="--first-seed"):
        planned("groups", tmp_path, overrides=["train.seed=3"])
