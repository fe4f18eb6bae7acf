"""A study is a YAML file: one preset, and rows that each change something of it, with the paper's number beside each."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dndetr.console import UserError
from dndetr.resolve import FOLDER as PRESETS
from dndetr.schema import guess, known_keys, nearest, show
from dndetr.settings import LONGEST_TEXT, Mistake, Place, compose, construct, printable, said_of

FOLDER = PRESETS / "ablations"


class Override(NamedTuple):
    """A setting of the study, `key=value`, and the line of the file that says so."""

    text: str
    place: Place


@dataclass(frozen=True)
class Row:
    """One row of a study: what it changes, and what the paper measured."""

    name: str
    set: tuple[Override, ...] = ()
    paper: float | dict[str, float] | None = None  # AP in percent, or that of each preset
    epochs: float = 1.0  # share of the preset's epochs, for the drop of the learning rate as well
    as_good_as: str | None = None  # the row that the paper finds this one comparable with, although it costs more

    @property
    def slug(self) -> str:
        """The name as a folder: `box + label + mask` is box-label-mask."""
        return slug(self.name)

    def paper_ap(self, preset: str) -> tuple[float | None, str]:
        """The paper's AP in percent for `preset`, and the name of another preset where the number is that one's."""
        if not isinstance(self.paper, dict):
            return self.paper, ""
        if preset in self.paper:
            return self.paper[preset], ""
        kin = [name for name in self.paper if family(name) == family(preset)]
        other = next(iter(kin or self.paper))
        return self.paper[other], other


def family(preset: str) -> str:
    """What detector a preset is of, by its name: `anchor` of dn-anchor-tiny and of anchor-dc5-r50-12ep."""
    return preset.removeprefix("dn-").partition("-")[0]


@dataclass(frozen=True)
class Study:
    """What `dndetr ablate` trains. The first row is the one that the others are compared with."""

    name: str
    preset: str  # unless the user names another one
    rows: tuple[Row, ...]
    base: tuple[Override, ...] = ()  # what every row changes
    reproduces: str = ""  # the table or figure of the paper
    setting: str = ""  # how the paper measured it, a sentence
    against: tuple[str, ...] = ()  # keys whose value is drawn against AP

    @property
    def title(self) -> str:
        return f"{self.name} ({self.reproduces})" if self.reproduces else self.name

    def paper_source(self, preset: str) -> str:
        """The presets, other than this one, whose numbers the paper's column holds: `of dn-dab-r50-50ep`, or nothing."""
        others = dict.fromkeys(row.paper_ap(preset)[1] for row in self.rows)
        return ", ".join(f"of {other}" for other in others if other)


def read_study(name_or_path: str) -> Study:
    """A study by its name or by the path of its file.

    Raises UserError with every mistake in the file at once, a line each: file, line and what is wrong.
    """
    path = find_study(name_or_path)
    name = printable(f"presets/ablations/{path.name}" if path.resolve().parent == FOLDER else str(path))
    reader = Reader(name)
    study = reader.study(path.stem, read_node(path, name))
    if reader.mistakes:
        raise UserError(*map(str, sorted(reader.mistakes, key=lambda mistake: mistake.place)))
    return study


def shipped() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_study(name_or_path: str) -> Path:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        if not os.path.isfile(name_or_path):
            raise UserError(f"{printable(name_or_path)}: no such study file")
        return Path(name_or_path)
    if name_or_path not in shipped():
        near = difflib.get_close_matches(name_or_path, shipped(), n=1)
        hint = f"did you mean {near[0]}" if near else f"there are {', '.join(shipped())}"
        raise UserError(f"unknown study {name_or_path!r}; {hint}? (the path of a file of your own ends in .yaml)")
    return FOLDER / f"{name_or_path}.yaml"


def read_node(path: Path, name: str) -> yaml.Node | None:
    try:
        with path.open(encoding="utf-8") as file:
            return compose(file.read(LONGEST_TEXT + 1))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}:{error.problem_mark.line + 1}: {said_of(error)}") from error


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


class Kind(NamedTuple):
    """What a field may hold: in words, and as a test of its plain value."""

    words: str
    fits: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


TEXT = Kind("text", lambda value: isinstance(value, str) and bool(value.strip()))
OVERRIDES = Kind("a list of KEY=VALUE, such as [noise.groups=1]", is_texts)
COUNT = Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
PAPER = Kind(
    "a number, or a number for each of some presets",
    lambda value: is_number(value) or isinstance(value, dict) and bool(value) and all(map(is_number, value.values())),
)
SHARE = Kind("a share of the preset's epochs, above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1)

STUDY_FIELDS = {
    "table": COUNT,
    "figure": COUNT,
    "setting": TEXT,
    "preset": TEXT,
    "base": OVERRIDES,
    "against": Kind("a list of settings, such as [noise.box_scale]", is_texts),
    "rows": Kind("a list of two rows or more", lambda value: isinstance(value, list) and len(value) > 1),
}
ROW_FIELDS = {
    "name": Kind("text with a letter or a digit", lambda value: isinstance(value, str) and bool(slug(value))),
    "set": OVERRIDES,
    "paper": PAPER,
    "epochs": SHARE,
    "as_good_as": TEXT,
}


class Reader:
    """Makes a study of a YAML node, and remembers all that is wrong with it."""

    def __init__(self, file: str):
        self.file = file
        self.mistakes: list[Mistake] = []

    def study(self, name: str, node: yaml.Node | None) -> Study:
        """As far as it can be read; what is wrong is in `mistakes`."""
        nodes = self.fields(node, STUDY_FIELDS, "a study", needed=("preset", "rows"))
        values = {key: construct(child) for key, child in nodes.items()}
        rows = [(self.row(child), child) for child in nodes["rows"].value] if "rows" in nodes else []
        for key in values.get("against", ()):
            if key not in known_keys():
                near = nearest(key, known_keys())
                self.wrong(nodes["against"], f"against: unknown key {show(key)}" + (f", did you mean {near}?" if near else ""))
        self.check_names(rows)
        sources = [f"{word.capitalize()} {values[word]}" for word in ("table", "figure") if word in values]
        return Study(
            name=name,
            preset=values.get("preset", ""),
            rows=tuple(row for row, _ in rows),
            base=self.overrides(nodes.get("base")),
            reproduces=", ".join(sources),
            setting=values.get("setting", ""),
            against=tuple(values.get("against", ())),
        )

    def row(self, node: yaml.Node) -> Row:
        nodes = self.fields(node, ROW_FIELDS, "a row", needed=("name",))
        values = {key: construct(child) for key, child in nodes.items()}
        return Row(**{"name": "", **values, "set": self.overrides(nodes.get("set"))})

    def fields(
        self, node: yaml.Node | None, kinds: dict[str, Kind], what: str, needed: tuple[str, ...]
    ) -> dict[str, yaml.Node]:
        """The nodes of a mapping that hold what they should."""
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, f"{what} holds `key: value` lines, with {' and '.join(needed)} among them")
            return {}
        good, seen = {}, set()
        for key_node, child in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            if key in seen:
                self.wrong(key_node, f"{show(key)} is given twice")
            elif key not in kinds:
                self.wrong(key_node, f"unknown key {show(key)} of {what}{guess(key, kinds)}")
            elif not kinds[key].fits(value := self.value(child)):
                self.wrong(key_node, f"{key} must be {kinds[key].words}, got {show(value)}")
            else:
                good[key] = child
            seen.add(key)
        for key in needed:
            if key not in seen:
                self.wrong(node, f"{key} is missing, it must be {kinds[key].words}")
        return good

    def value(self, node: yaml.Node) -> Any:
        try:
            return construct(node)
        except yaml.YAMLError as error:
            return said_of(error)

    def overrides(self, node: yaml.Node | None) -> tuple[Override, ...]:
        return () if node is None else tuple(Override(child.value, self.place(child)) for child in node.value)

    def check_names(self, rows: list[tuple[Row, yaml.Node]]) -> None:
        """Every row has a folder of its own; what rows refer to is there."""
        seen: dict[str, str] = {}
        for row, node in rows:
            if row.slug and row.slug in seen:
                self.wrong(node, f"row {show(row.name)} would share the folder {row.slug} with {show(seen[row.slug])}")
            seen.setdefault(row.slug, row.name)
        for row, node in rows:
            names = [other.name for other, _ in rows if other is not row]
            if row.as_good_as is not None and row.as_good_as not in names:
                self.wrong(node, f"as_good_as must be another row, got {show(row.as_good_as)}{guess(row.as_good_as, names)}")

    def wrong(self, node: yaml.Node | None, problem: str) -> None:
        self.mistakes.append(Mistake(self.place(node), problem))

    def place(self, node: yaml.Node | None) -> Place:
        line = 1 if node is None else node.start_mark.line + 1
        return Place(3, line, f"{self.file}:{line}")
