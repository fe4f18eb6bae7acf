from pathlib import Path

import pytest

from dndetr.console import UserError
from dndetr.settings import Place, merge, parse_override, read_settings

OVERRIDE = Place(2, 0, "override")


def read(tmp_path: Path, text: str):
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    return read_settings(file, "p.yaml", layer=1)


def values(settings) -> dict:
    return {key: setting.value for key, setting in settings.items()}


def given(**blocks) -> dict:
    """Settings as merge takes them, from key__inner=value."""
    text = [f"{key.replace('__', '.')}={value}" for key, value in blocks.items()]
    return {key: setting for line in text for key, setting in parse_override(line, OVERRIDE)[0].items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("1E5", 1e5),
        ("+2.5e+3", 2500.0),
        ("-1e2", -100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("16", 16),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        (".inf", ".inf"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("'1e-4'", "1e-4"),
        ('"null"', "null"),
        ("[1, 2e1, no]", [1, 20.0, "no"]),
        ("[]", []),
        ("{}", {}),
    ],
)
def test_a_value_means_what_it_looks_like(tmp_path, text, value):
    settings, mistakes = read(tmp_path, f"key: {text}\n")
    assert mistakes == []
    assert (settings["key"].value, type(settings["key"].value)) == (value, type(value))


def test_every_value_knows_its_line(tmp_path):
    settings, mistakes = read(tmp_path, "# first\nhost:\n  name: x\n\n  queries: 9\nnoise: {groups: 3,\n  labels: no}\n")
    assert mistakes == []
    assert {key: (setting.value, str(setting.place)) for key, setting in settings.items()} == {
        "host.name": ("x", "p.yaml:3"),
        "host.queries": (9, "p.yaml:5"),
        "noise.groups": (3, "p.yaml:6"),
        "noise.labels": ("no", "p.yaml:7"),
    }


def test_line_10_comes_after_line_9_and_overrides_after_files():
    places = [Place(2, 0, "override"), Place(1, 10, "p:10"), Place(1, 9, "p:9"), Place(0, 50, "base:50")]
    assert [str(place) for place in sorted(places)] == ["base:50", "p:9", "p:10", "override"]


def test_blocks_may_be_written_with_dots(tmp_path):
    settings, mistakes = read(tmp_path, "train.lr: 3\ntrain.epochs: 4\n")
    assert (values(settings), mistakes) == ({"train.lr": 3, "train.epochs": 4}, [])


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_file_may_be_empty(tmp_path, text):
    assert read(tmp_path, text) == ({}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr: 1\nlr: 2\n", "p.yaml:2: 'lr' is given twice, first at p.yaml:1"),
        ("train: {lr: 1,\n  lr: 2}\n", "p.yaml:2: 'train.lr' is given twice, first at p.yaml:1"),
        ("train: {lr: 1}\n\ntrain: {epochs: 2}\n", "p.yaml:3: 'train' is given twice, first at p.yaml:1"),
        ("train: {lr: 1}\ntrain.lr: 2\n", "p.yaml:2: 'train.lr' is given twice, first at p.yaml:1"),
        ("noise: {groups: 3}\nnoise: null\n", "p.yaml:2: 'noise' is given twice, first at p.yaml:1"),
        ("? [a, b]\n: 1\n", "p.yaml:1: a key must be a plain word"),
        ("- 1\n- 2\n", "p.yaml:1: a preset holds `key: value` lines, this file something else"),
        ("shapes\n", "p.yaml:1: a preset holds `key: value` lines, this file something else"),
        (
            "a: 1\nb: !secret 3\n",
            "p.yaml:2: the value of b cannot be read: could not determine a constructor for the tag '!secret'",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, text, problem):
    assert [str(mistake) for mistake in read(tmp_path, text)[1]] == [problem]


def test_a_block_is_not_null_and_filled_at_once(tmp_path):
    _, mistakes = read(tmp_path, "noise: null\nnoise.groups: 3\n")
    assert [mistake.place.text for mistake in mistakes] == ["p.yaml:2"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: [1\nc: 2\n", "p.yaml:3: not valid YAML: expected ',' or ']', but got ':'"),
        ("a: b: c\n", "p.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2\n", "p.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2\n", "p.yaml:2: not valid YAML: but found another document"),
        ("a: 1\nb: *c\n", "p.yaml:2: not valid YAML: found undefined alias 'c'"),
    ],
)
def test_broken_yaml_is_said_with_its_line(tmp_path, text, problem):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert error.value.lines == (problem,)


def test_a_value_within_itself_is_refused(tmp_path):
    try:
        _, mistakes = read(tmp_path, "a: 1\nb: &b {c: *b}\n")
    except UserError as error:
        mistakes = error.lines
    assert mistakes


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match=r"^p\.yaml: cannot be read: 'utf-8' codec can't decode"):
        read_settings(tmp_path / "p.yaml", "p.yaml", layer=1)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^nope\.yaml: cannot be read: .*No such file"):
        read_settings(tmp_path / "nope.yaml", "nope.yaml", layer=1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train.lr=1e-4", {"train.lr": 1e-4}),
        (" train.lr = 3 ", {"train.lr": 3}),
        ("noise=null", {"noise": None}),
        ("noise=", {"noise": None}),
        ("data.sizes=[32, 64]", {"data.sizes": [32, 64]}),
        ("data.root=a=b", {"data.root": "a=b"}),
        ("data.root=010", {"data.root": "010"}),
        ("data.root=set #2", {"data.root": "set #2"}),
        ("data.root=#2", {"data.root": "#2"}),
        ("data.root='set #2'", {"data.root": "set #2"}),
        ("data.root=[set, other] #2", {"data.root": "[set, other] #2"}),
        ("data.root='2017'", {"data.root": "2017"}),
        ("noise={groups: 3, labels: false}", {"noise.groups": 3, "noise.labels": False}),
        ("noise={}", {"noise": {}}),
    ],
)
def test_an_override_is_a_key_and_a_yaml_value(text, found):
    settings, mistakes = parse_override(text, OVERRIDE)
    assert (values(settings), mistakes) == (found, [])
    assert all(setting.place is OVERRIDE for setting in settings.values())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train.lr", "override: an override is key=value, for example train.lr=1e-4"),
        ("=3", "override: an override is key=value, for example train.lr=1e-4"),
        ("", "override: an override is key=value, for example train.lr=1e-4"),
        ("a=[1", "override: the value is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a=!x 1", "override: the value is not valid YAML: could not determine a constructor for the tag '!x'"),
        ("a={b: 1, b: 2}", "override: 'a.b' is given twice, first at override"),
    ],
)
def test_what_is_wrong_with_an_override_is_said(text, problem):
    assert [str(mistake) for mistake in parse_override(text, OVERRIDE)[1]] == [problem]


def test_a_broken_override_sets_nothing():
    assert parse_override("a=[1", OVERRIDE)[0] == {}


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"noise__groups": 5, "noise__labels": "true"}, {"noise": "null"}, {"noise": None}),
        ({"noise": "null"}, {"noise__groups": 3}, {"noise.groups": 3}),
        ({"noise__groups": 5}, {"noise__labels": "false"}, {"noise.groups": 5, "noise.labels": False}),
        ({"noise__groups": 5}, {"noise": "null", "noise__labels": "false"}, {"noise.labels": False}),
        ({"noise__groups": 5}, {"noisy": "null"}, {"noise.groups": 5, "noisy": None}),
        ({"data__sizes": "[1, 2]"}, {"data__sizes": "[3]"}, {"data.sizes": [3]}),
        ({}, {"a": 1}, {"a": 1}),
    ],
)
def test_merging(below, above, merged):
    assert values(merge(given(**below), given(**above))) == merged


@pytest.mark.parametrize(
    ("below", "merged"),
    [("noise: null\n", {"noise": {}}), ("noise: {groups: 5}\n", {"noise.groups": 5}), ("", {"noise": {}})],
)
def test_an_empty_block_asks_for_the_block_and_keeps_what_is_there(tmp_path, below, merged):
    lower, _ = read(tmp_path, below)
    upper, _ = read(tmp_path, "noise: {}\n")
    assert values(merge(lower, upper)) == merged


def test_merging_changes_neither_side():
    below, above = given(noise__groups=5), given(noise="null")
    merge(below, above)
    assert (values(below), values(above)) == ({"noise.groups": 5}, {"noise": None})
