"""YAML and `key=value` to settings by dotted key, each with the place where it was written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dncli.console import UserError


class Place(NamedTuple):
    """Where a value was written; places sort as the user reads them."""

    layer: int  # 0 the preset that is extended, 1 the preset, 2 the overrides
    line: int
    text: str

    def __str__(self) -> str:
        return self.text


class Setting(NamedTuple):
    """One value and where it comes from."""

    value: Any
    place: Place


class Mistake(NamedTuple):
    """One thing to mend."""

    place: Place
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


Settings = dict[str, Setting]  # by dotted key; a whole block is a key of its own where it is null or empty
Found = tuple[Settings, list[Mistake]]

ENDLESS = "nested too deeply, or within itself"


def read_settings(path: Path, name: str, layer: int) -> Found:
    """One YAML file, called `name` in what is said of it. UserError where it cannot be read at all."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=Loader)
        if node is None:
            return {}, []
        if not isinstance(node, yaml.MappingNode):
            return {}, [Mistake(Place(layer, 1, f"{name}:1"), "a preset holds `key: value` lines, this file something else")]
        return flatten(node, lambda at: Place(layer, at.start_mark.line + 1, f"{name}:{at.start_mark.line + 1}"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{name}:{mark.line + 1 if mark else 1}: not valid YAML: {problem_of(error)}") from error
    except RecursionError as error:
        raise UserError(f"{name}: {ENDLESS}") from error


def parse_override(text: str, place: Place) -> Found:
    """`key=value` from the command line, where the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        return {}, [Mistake(place, "an override is key=value, for example train.lr=1e-4")]
    try:
        node = yaml.compose(value, Loader=Loader)
        if isinstance(node, yaml.MappingNode) and node.value:
            return flatten(node, lambda _: place, f"{key.strip()}.")
        return {key.strip(): Setting(None if node is None else construct(node), place)}, []
    except yaml.YAMLError as error:
        return {}, [Mistake(place, f"the value is not valid YAML: {problem_of(error)}")]
    except RecursionError:
        return {}, [Mistake(place, f"the value is {ENDLESS}")]


def merge(below: Settings, above: Settings) -> Settings:
    """Put settings on top of others: `noise: null` removes the block below, `noise.groups: 3` makes it again."""
    settings = dict(below)
    for key, setting in above.items():
        if setting.value == {} and any(is_inside(k, key) for k in settings):
            continue  # an empty block asks for the block, which is there
        settings = {k: s for k, s in settings.items() if not (is_inside(k, key) or is_inside(key, k))}
        settings[key] = setting
    return settings


def is_inside(key: str, block: str) -> bool:
    return key.startswith(block + ".")


def flatten(node: yaml.MappingNode, place_of: Callable[[yaml.Node], Place], prefix: str = "") -> Found:
    """The leaves of a mapping by dotted key, and keys that are given twice or cannot be read."""
    settings: Settings = {}
    mistakes: list[Mistake] = []
    for key_node, value_node in node.value:
        place = place_of(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            mistakes.append(Mistake(place, "a key must be a plain word"))
            continue
        key = prefix + key_node.value
        first = next((s.place for k, s in settings.items() if k == key or is_inside(k, key) or is_inside(key, k)), None)
        if first is not None:
            mistakes.append(Mistake(place, f"{key!r} is given twice, first at {first}"))
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            inner, wrong = flatten(value_node, place_of, f"{key}.")
            settings |= inner
            mistakes += wrong
            continue
        try:
            settings[key] = Setting(construct(value_node), place)
        except yaml.YAMLError as error:
            mistakes.append(Mistake(place, f"the value of {key} cannot be read: {problem_of(error)}"))
    return settings, mistakes


class Loader(yaml.SafeLoader):
    """YAML whose plain words mean what they look like: 1e-4 is a number; yes, no, 010 and dates are words."""

    yaml_implicit_resolvers: dict = {}


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads: text that looks like a number there is quoted."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


for _kind, _pattern, _first in (
    ("null", r"|~|null|Null|NULL", ["", *"~nN"]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", list("-+0123456789.")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


def dump(tree: Any, **options: Any) -> str:
    """Plain values as YAML, in their order."""
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, **options)


def construct(node: yaml.Node) -> Any:
    """The plain value of a node."""
    loader = Loader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def problem_of(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).replace("\n", " ")
