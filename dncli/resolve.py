"""Presets by name or path with overrides on top: one validated tree of settings that knows where each value came from."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dndetr import presets
from dndetr.console import UserError
from dndetr.settings import (
    LONGEST_KEY,
    Found,
    Mistake,
    Place,
    Setting,
    Settings,
    dump,
    is_among,
    is_inside,
    merge,
    parse_override,
    printable,
    read_settings,
)

if TYPE_CHECKING:
    from dndetr.config import Config

FOLDER = Path(presets.__file__).resolve().parent


@dataclass(frozen=True)
class Resolved:
    """A preset with its overrides."""

    config: Config
    sources: dict[str, str]  # dotted key -> "default", "presets/x.yaml:3" or "override"
    tree: dict[str, Any]  # the same settings as plain types


class Summary(NamedTuple):
    """What `dndetr presets` says of a preset."""

    name: str
    paper: dict[str, Any]  # its table, row, ap ...; empty where it is no row of the paper
    settings: dict[str, Any]  # by dotted key, as written, `paper` among them


def load_preset(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read a preset by name or path, put the overrides (`key=value`, the last one wins) on top and validate all of it.

    Raises UserError with every mistake at once, a line each: file, line, key and the nearest valid name.
    """
    path = find_preset(name_or_path)
    settings, mistakes = read_preset(path)
    for order, text in enumerate(overrides):
        given, wrong = parse_override(text, Place(2, order, f"override {text!r}"))
        settings, mistakes = merge(settings, given), mistakes + wrong
    config = validated(settings, mistakes, Place(1, 0, shown(path)))
    tree = to_tree(config)
    return Resolved(config, {key: source_of(key, settings) for key in leaves(tree)}, tree)


def to_tree(config: Config) -> dict[str, Any]:
    """Settings as dictionaries, lists and plain values: what config.yaml and checkpoints hold."""
    return plain(asdict(config))


def from_tree(tree: dict[str, Any], origin: str = "settings") -> Config:
    """The inverse of `to_tree`. Raises UserError whose lines begin with `origin`, the file that the tree came from."""
    place = Place(1, 0, origin)
    return validated({key: Setting(value, place) for key, value in leaves(tree).items()}, [], place)


def to_yaml(resolved: Resolved) -> str:
    """The whole tree as YAML, itself a preset, with the source of each value beside it."""
    rows: list[tuple[str, str]] = []
    block = None
    for key, value in leaves(resolved.tree).items():
        parent, _, name = key.rpartition(".")
        if parent and parent != block:
            rows.append((f"{parent}:", ""))
        block = parent
        text = dump([value], default_flow_style=True, width=float("inf"), allow_unicode=True).strip()[1:-1]
        rows.append((f"{'  ' if parent else ''}{name}: {text}", f"  # {resolved.sources[key]}"))
    width = max(len(text) for text, _ in rows if len(text) <= 50)
    return "\n".join(f"{text:<{width}}{source}".rstrip() for text, source in rows)


def list_presets() -> list[Summary]:
    """Every preset that comes with dndetr, read without validating it."""
    return [summary(path) for path in sorted(FOLDER.glob("*.yaml"))]


def summary(path: Path) -> Summary:
    """A preset's row of the paper, and what is set in it or in the preset that it extends."""
    settings = {key: setting.value for key, setting in read_preset(path)[0].items()}
    paper = {key.removeprefix("paper."): value for key, value in settings.items() if is_inside(key, "paper")}
    return Summary(path.stem, paper, settings)


def find_preset(name_or_path: str | Path) -> Path:
    """The file, where a path is given, else the preset of that name."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        if not os.path.isfile(text):
            raise UserError(f"{printable(text)}: no such preset file")
        return Path(text)
    if os.path.isfile(FOLDER / f"{text}.yaml"):  # Path.is_file raises for a name that is too long
        return FOLDER / f"{text}.yaml"
    near = difflib.get_close_matches(text, [path.stem for path in FOLDER.glob("*.yaml")], n=3)
    guess = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"unknown preset {text!r}{guess} (see `dndetr presets`; the path of a file ends in .yaml)")


def shown(path: Path) -> str:
    """A path as the user knows it: what comes with dndetr is presets/NAME.yaml, wherever it is installed."""
    return printable(f"presets/{path.name}" if path.resolve().parent == FOLDER else str(path))


def read_preset(path: Path) -> Found:
    """The settings of a file, on top of those of the one preset that it may extend."""
    settings, mistakes = read_settings(path, shown(path), layer=1)
    base = settings.pop("extends", None)
    if base is None:
        return settings, mistakes
    name = base.value
    if not isinstance(name, str):
        problem = f"extends must be the name or the path of a preset, got {json.dumps(name)[:LONGEST_KEY]}"
        raise UserError(*map(str, [*mistakes, Mistake(base.place, problem)]))
    neighbour = path.parent / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    try:
        file = neighbour if os.path.isfile(neighbour) else find_preset(name)
        below, wrong = read_settings(file, shown(file), layer=0)
    except UserError as error:  # without it, what it would have held seems to be missing
        raise UserError(*map(str, [*mistakes, Mistake(base.place, f"extends: {error}")])) from error
    if "extends" in below:
        further = printable(str(below.pop("extends").value))
        problem = f"extends {printable(name)}, which extends {further}; only one level is allowed"
        wrong = [*wrong, Mistake(base.place, problem)]
    below = {k: s for k, s in below.items() if not is_among(k, ["paper"])}  # another row's numbers
    return merge(below, settings), wrong + mistakes


def validated(settings: Settings, mistakes: list[Mistake], origin: Place) -> Config:
    """The tree of settings, or every mistake at once."""
    from dndetr.schema import validate

    config, wrong = validate(settings, origin)
    if mistakes or wrong:
        ordered = sorted({*mistakes, *wrong}, key=lambda mistake: (mistake.place, mistake.problem))
        raise UserError(*(str(mistake) for mistake in ordered))
    return config


def source_of(key: str, settings: Settings) -> str:
    if key not in settings:
        return "default"
    place = settings[key].place
    return "override" if place.layer == 2 else place.text


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree by dotted key; an empty block is a leaf."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def plain(value: Any) -> Any:
    """Tuples become lists, as in YAML."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
