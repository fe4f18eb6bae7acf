"""Presets and overrides: what is written is read, layers add up, and any nonsense is answered by mistakes."""

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.resolve import from_tree, leaves, load_preset, to_tree, to_yaml
from dndetr.schema import known_keys, nearest, override_for
from dndetr.settings import Place, Setting, dump, is_inside, merge, parse_override, read_settings
from tests.properties import repeatable

HERE = Place(2, 0, "here")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=100)
# what means something to YAML, and what looks like a number, a word or nothing there
marks = [*"{}[]:,#&*!|>'\"%@`?-=~ \t\n.+0123456789eExX_", "null", "true", "!!int ", "\u2028", "\x85", "\ufeff"]
tricky = st.lists(st.sampled_from(marks), max_size=12).map("".join)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = scalars | text | tricky
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=10)
words = st.text(st.sampled_from("abcdefgh_"), min_size=1, max_size=6)
trees = st.recursive(values, lambda inner: st.dictionaries(words, inner, max_size=4), max_leaves=12)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Presets lie here, and what they extend by a relative path is looked for here."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("presets"))
    yield
    os.chdir(before)


def equal(a, b) -> bool:
    """Equal, and of equal types: 1 is not 1.0, and not true."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@given(values)
@repeatable
def test_a_value_comes_back_from_an_override(value):
    settings, mistakes = parse_override(f"block.name={dump(value)}", HERE)
    assert mistakes == [] and equal(settings["block.name"].value, value)


@given(st.dictionaries(words, trees, min_size=1, max_size=4))
@repeatable
def test_a_tree_comes_back_from_a_file(tree):
    Path("tree.yaml").write_text(dump(tree, allow_unicode=True), encoding="utf-8")
    settings, mistakes = read_settings(Path("tree.yaml"), "tree.yaml", layer=1)
    assert mistakes == []
    assert equal({key: setting.value for key, setting in settings.items()}, leaves(tree))


def answer(*overrides: str, preset: str = "preset.yaml"):
    """The settings, or None where mistakes are said: each on a line of its own."""
    try:
        return load_preset(preset, overrides)
    except UserError as error:
        assert error.lines and all(line.isprintable() for line in error.lines)
        return None


@given(
    st.lists(st.builds("{}={}".format, st.sampled_from(known_keys()) | words, tricky | text) | tricky | st.text(), max_size=3)
)
@repeatable
def test_any_override_works_or_is_a_mistake(overrides):
    Path("preset.yaml").write_text("host: {name: dab_detr}\n")
    answer(*overrides)


@given(st.binary(max_size=60) | tricky.map(str.encode) | st.lists(tricky).map("\n".join).map(str.encode))
@repeatable
def test_any_file_works_or_is_a_mistake(content):
    Path("preset.yaml").write_bytes(b"host: {name: dab_detr}\n" + content)
    answer()


@given(st.text() | tricky | st.text(max_size=3).map(lambda name: 200 * name))
@repeatable
def test_any_name_is_a_preset_or_a_mistake(name):
    Path("preset.yaml").write_text(f"host: {{name: dab_detr}}\n{dump({'extends': name})}")
    answer()
    answer(preset=name)


@given(st.sampled_from(known_keys()), values)
@repeatable
def test_a_setting_holds_the_value_that_it_is_given_or_tells_its_key(key, value):
    Path("preset.yaml").write_text("host: {name: deformable_detr, decoder: dense}\n")
    try:
        resolved = load_preset("preset.yaml", [f"{key}={dump(value)}"])
    except UserError as error:
        block = key.partition(".")[0]
        assert any(block in line.partition(": ")[2] for line in error.lines)
    else:
        assert leaves(resolved.tree)[key] == value and resolved.sources[key] == "override"


share = st.floats(0, 1)
count = st.integers(1, 2**40)
VALID = {
    "host.queries": count,
    "host.dropout": st.floats(0, 0.99),
    "backbone.name": st.sampled_from(["resnet50", "resnet101"]),
    "noise.groups": st.integers(1, 100),
    "noise.box_scale": share,
    "noise.labels": st.booleans(),
    "match.box": st.floats(0, 1e300),
    "loss.alpha": share,
    "data.root": text | tricky,
    "data.sizes": st.lists(count, min_size=1, max_size=5),
    "data.crop": st.booleans(),
    "train.lr": st.floats(5e-324, 1e300),
    "train.precision": st.sampled_from(["fp32", "bf16", "fp16"]),
    "train.seed": st.integers(0, 2**63 - 1),
    "op": st.sampled_from(["auto", "native", "torch"]),
}
some_settings = st.fixed_dictionaries({}, optional=VALID)


@given(some_settings, st.sampled_from(["dab_detr", "deformable_detr"]))
@repeatable
def test_settings_are_the_same_as_tree_as_yaml_and_as_the_file_of_a_run(given_values, host):
    Path("preset.yaml").write_text(f"host: {{name: {host}}}\n")
    overrides = [f"{key}={dump(value)}" for key, value in given_values.items()]
    resolved = load_preset("preset.yaml", overrides)
    for key, value in given_values.items():
        assert equal(leaves(resolved.tree)[key], value) and resolved.sources[key] == "override"
    assert from_tree(to_tree(resolved.config)) == resolved.config
    for written in (to_yaml(resolved), dump(resolved.tree)):
        Path("again.yaml").write_text(written, encoding="utf-8")
        again = load_preset("again.yaml")
        assert again.config == resolved.config and equal(again.tree, resolved.tree)


@given(some_settings, some_settings)
@repeatable
def test_a_preset_that_extends_another_is_that_other_with_overrides(below, above):
    Path("base.yaml").write_text(dump({"host.name": "dab_detr", **below}), encoding="utf-8")
    Path("preset.yaml").write_text(dump({"extends": "base", **above}), encoding="utf-8")
    overridden = load_preset("base.yaml", [f"{key}={dump(value)}" for key, value in above.items()])
    assert load_preset("preset.yaml").config == overridden.config


leaf_keys = st.sampled_from(["a.x", "a.y", "b.x", "b.y.z", "c"])
block_keys = leaf_keys | st.sampled_from(["a", "b", "b.y"])


def layers(keys, contents=st.integers(0, 3)):
    """Settings without a key inside another one, as one file or override gives them."""
    made = st.dictionaries(keys, st.builds(Setting, contents, st.just(HERE)), max_size=5)
    return made.filter(lambda layer: not any(is_inside(a, b) for a in layer for b in layer))


@given(layers(leaf_keys), layers(leaf_keys), layers(leaf_keys))
@repeatable
def test_without_whole_blocks_it_does_not_matter_which_layers_are_merged_first(a, b, c):
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, {}) == merge({}, a) == merge(a, a) == a


@given(layers(block_keys, st.none() | st.just({}) | st.integers(0, 3)), layers(block_keys, st.none() | st.integers(0, 3)))
@repeatable
def test_what_lies_above_holds_and_nothing_is_both_a_value_and_a_block(below, above):
    merged = merge(below, above)
    assert not any(is_inside(a, b) for a in merged for b in merged)
    assert {key: merged[key] for key in above} == above
    untouched = {k for k in below if not any(k == a or is_inside(k, a) or is_inside(a, k) for a in above)}
    assert merged.keys() == above.keys() | untouched


@given(words | text | tricky)
@repeatable
def test_a_guess_is_a_key_that_there_is(key):
    known = known_keys()
    assert nearest(key, known) in [None, *known]
    override = override_for(f"--{key}", "3")
    assert override is None or override.removesuffix("=3") in known


@given(st.dictionaries(words, trees, max_size=4))
@repeatable
def test_a_tree_of_any_shape_is_settings_or_mistakes(tree):
    try:
        assert isinstance(from_tree({"host": {"name": "dab_detr"}, **tree}, "last.pt"), Config)
    except UserError as error:
        assert all(line.startswith("last.pt: ") for line in error.lines)


def test_what_is_tried_here_are_settings():
    assert set(VALID) <= set(known_keys())
    assert {field.name for field in dataclasses.fields(Config)} >= {key.partition(".")[0] for key in VALID}
