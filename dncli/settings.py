"""YAML and `key=value` to settings by dotted key, each with the place where it was written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dndetr.console import UserError


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

# A preset has some hundred keys and values. What is far beyond is a mistake, or made to eat memory and time.
LONGEST_TEXT, LONGEST_KEY, MOST_NODES, DEEPEST = 100_000, 200, 2_000, 20


def read_settings(path: Path, name: str, layer: int) -> Found:
    """One YAML file, called `name` in what is said of it. UserError where it cannot be read at all."""
    try:
        with path.open(encoding="utf-8") as file:
            node = compose(file.read(LONGEST_TEXT + 1))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}:{error.problem_mark.line + 1}: {said_of(error)}") from error
    if node is None:
        return {}, []
    if not isinstance(node, yaml.MappingNode):
        return {}, [Mistake(Place(layer, 1, f"{name}:1"), "a preset holds `key: value` lines, this file something else")]
    return flatten(node, lambda at: Place(layer, at.start_mark.line + 1, f"{name}:{at.start_mark.line + 1}"))


def parse_override(text: str, place: Place) -> Found:
    """`key=value` from the command line, where the value is YAML; but all of it is the value, and nothing a comment."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        return {}, [Mistake(place, "an override is key=value, for example train.lr=1e-4")]
    try:
        node = compose(value)
        if value[0 if node is None else node.end_mark.index :].lstrip().startswith("#"):
            return {key.strip(): Setting(value.strip(), place)}, []
        if isinstance(node, yaml.MappingNode) and node.value:
            check_tag(node)
            return flatten(node, lambda _: place, f"{key.strip()}.")
        return {key.strip(): Setting(None if node is None else construct(node), place)}, []
    except yaml.YAMLError as error:
        return {}, [Mistake(place, f"the value is {said_of(error)}")]


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


def is_among(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of these settings, or inside of one of these blocks."""
    return any(key == name or is_inside(key, name) for name in names)


def flatten(node: yaml.MappingNode, place_of: Callable[[yaml.Node], Place], prefix: str = "") -> Found:
    """The leaves of a mapping by dotted key, and keys that are given twice or cannot be read."""
    settings: Settings = {}
    mistakes: list[Mistake] = []
    blocks: dict[str, Place] = {}  # every key that others are inside of, with its first place
    for key_node, value_node in node.value:
        place = place_of(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            mistakes.append(Mistake(place, "a key must be a plain word"))
            continue
        key = prefix + key_node.value
        if key_node.value == "<<":
            mistakes.append(Mistake(place, "merge keys (<<) are not known; write the settings out, or use extends"))
            continue
        if len(key) > LONGEST_KEY:
            mistakes.append(Mistake(place, f"a key of {len(key)} characters is no setting"))
            continue
        above = list(blocks_of(key))
        first = next((settings[k].place for k in (key, *above) if k in settings), blocks.get(key))
        if first is not None:
            mistakes.append(Mistake(place, f"{key!r} is given twice, first at {first}"))
        try:
            construct(key_node)
            if isinstance(value_node, yaml.MappingNode) and value_node.value:
                check_tag(value_node)
                inner, wrong = flatten(value_node, place_of, f"{key}.")
            else:
                inner, wrong = {key: Setting(construct(value_node), place)}, []
        except yaml.YAMLError as error:
            mistakes.append(Mistake(place, f"the value of {printable(key)} cannot be read: {problem_of(error)}"))
            continue
        settings |= inner
        mistakes += wrong
        for name, setting in inner.items():
            for block in blocks_of(name):
                blocks.setdefault(block, setting.place)
    return settings, mistakes


def blocks_of(key: str) -> Iterator[str]:
    """The blocks that a dotted key is inside of, the outermost first."""
    parts = key.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number"}


class Unfit(yaml.MarkedYAMLError):
    """YAML, but not what settings are made of."""


class Loader(yaml.SafeLoader):
    """YAML whose plain words mean what they look like: 1e-4 is a number; yes, no, 010 and dates are words.

    It makes plain values only: a tag of another kind (`!!timestamp`, `!!python/name`) is a mistake, as is a number that is
    none. It composes no value that is within itself, too deep, or too large once its aliases are written out.
    """

    yaml_implicit_resolvers: dict = {}
    yaml_constructors: dict = {}

    def __init__(self, stream: str):
        self.depth = 0
        self.extents: dict[int, int] = {}  # how many nodes each node is, by its id
        super().__init__(stream)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        mark = self.peek_event().start_mark
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unfit(problem=f"nested deeper than {DEEPEST} levels", problem_mark=mark)
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and id(node) not in self.extents:
            raise Unfit(problem="nested within itself", problem_mark=mark)
        if self.extents.setdefault(id(node), self.measure(node)) > MOST_NODES:
            raise Unfit(problem=f"larger than {MOST_NODES} values, with its aliases written out", problem_mark=mark)
        return node

    def measure(self, node: yaml.Node) -> int:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        children = node.value if isinstance(node, yaml.SequenceNode) else [child for pair in pairs for child in pair]
        return 1 + sum(self.extents[id(child)] for child in children)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """What the word looks like, whatever its tag says it is."""
        word, kind = self.construct_scalar(node), node.tag.rpartition(":")[2]
        looks = self.resolve(yaml.ScalarNode, word, (True, False)).rpartition(":")[2]
        if looks != kind and not (looks, kind) == ("int", "float"):
            raise Unfit(problem=f"not {KINDS[kind]}, got {word!r}", problem_mark=node.start_mark)
        try:
            return {"bool": lambda text: text.lower() == "true", "int": int, "float": float}[kind](word)
        except ValueError as error:  # Python reads some thousand digits
            raise Unfit(problem=f"too long a number, of {len(word)} digits", problem_mark=node.start_mark) from error


for _kind, _make in (
    *((kind, yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]) for kind in ("null", "str", "seq", "map")),
    *((kind, Loader.construct_number) for kind in ("bool", "int", "float")),
):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _make)
Loader.add_constructor(None, yaml.SafeLoader.construct_undefined)


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads: text that looks like a number there is quoted."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Escaped where it holds line breaks: PyYAML folds those of Unicode when it quotes them as they are."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, Dumper.represent_text)


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


def compose(text: str) -> yaml.Node | None:
    """The node of a text; every mistake in it is a yaml.MarkedYAMLError."""
    if len(text) > LONGEST_TEXT:
        raise Unfit(problem=f"longer than {LONGEST_TEXT} characters", problem_mark=mark_at(text, 0))
    try:
        loader = Loader(text)
    except yaml.reader.ReaderError as error:
        problem = f"the character {chr(error.character)!r} is not allowed"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark_at(text, error.position)) from error
    try:
        return loader.get_single_node()
    except (ValueError, OverflowError) as error:  # PyYAML makes a character of "\UFFFFFFFF", and a number of any digits
        problem = "a character or a version that does not exist"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=loader.get_mark()) from error
    finally:
        loader.dispose()


def mark_at(text: str, position: int) -> yaml.Mark:
    return yaml.Mark("", position, text.count("\n", 0, position), 0, None, None)


def check_tag(node: yaml.MappingNode) -> None:
    """A block is a plain mapping."""
    if node.tag != "tag:yaml.org,2002:map":
        raise Unfit(problem=f"a block with the tag {node.tag!r}; blocks have none", problem_mark=node.start_mark)


def construct(node: yaml.Node) -> Any:
    """The plain value of a node."""
    loader = Loader("")
    try:
        return loader.construct_object(node, deep=True)
    finally:
        loader.dispose()


def said_of(error: yaml.YAMLError) -> str:
    return problem_of(error) if isinstance(error, Unfit) else f"not valid YAML: {problem_of(error)}"


def problem_of(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).replace("\n", " ")


def printable(text: str) -> str:
    """A name as it is, or quoted where a terminal could not show it on one line."""
    return text if text.isprintable() else repr(text)
