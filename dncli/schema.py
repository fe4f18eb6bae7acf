"""Validation of settings: pydantic over the dataclasses of the tree, what it finds said in the user's words."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dndetr.config import Config
from dndetr.console import brief
from dndetr.models.hosts import HOSTS
from dndetr.models.structures import FieldErrors
from dndetr.settings import Mistake, Place, Settings, is_among, is_inside

WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
}
HINTS = get_type_hints(Config)
CHOICES = {name: get_args(hint) for name, hint in HINTS.items() if get_origin(hint) is Literal}  # settings in no block
LONGEST = 200  # characters of a value or a key that a sentence shows
OPTIONAL = {block for block, hint in HINTS.items() if NoneType in get_args(hint)}


def validate(settings: Settings, origin: Place) -> tuple[Config | None, list[Mistake]]:
    """The configuration, or None with all that is wrong. `origin` is the place of what is missing."""
    host, mistakes = choose_host(settings, origin)
    blocks = block_classes(host)
    mistakes += unknown_keys(settings, host)
    values, wrong = choices(settings)
    mistakes += wrong
    for block, cls in blocks.items():
        values[block], wrong = build_block(block, cls, settings, origin)
        mistakes += wrong
    if mistakes:
        return None, mistakes
    try:
        return Config(**values), []
    except FieldErrors as error:
        return None, [
            Mistake(place_of(f"{key} {problem}", settings, origin), f"{key} {problem}")
            for key, problem in error.problems.items()
        ]


def choices(settings: Settings) -> tuple[dict[str, str], list[Mistake]]:
    """The settings that stand in no block, each one of a few words."""
    given = {name: settings[name] for name in CHOICES if name in settings}
    mistakes = [
        Mistake(s.place, f"{name} must be {' or '.join(CHOICES[name])}, got {show(s.value)}{guess(s.value, CHOICES[name])}")
        for name, s in given.items()
        if s.value not in CHOICES[name]
    ]
    return {name: s.value for name, s in given.items()}, mistakes


def place_of(sentence: str, settings: Settings, origin: Place) -> Place:
    """Where the first setting stands that a sentence names, or something of the block that it names."""
    for word in sentence.replace(",", " ").split():
        key = word.strip(":")
        places = [s.place for k, s in settings.items() if is_among(k, [key])]
        if places:
            return min(places)
    return origin


def choose_host(settings: Settings, origin: Place) -> tuple[str | None, list[Mistake]]:
    """The name of the host; None where it cannot be told."""
    choices = " or ".join(HOSTS)
    if "host" in settings and settings["host"].value not in ({}, None):
        value, place = settings["host"]
        return None, [Mistake(place, f"host must be a block of settings, got {show(value)}")]
    if "host.name" not in settings:
        return None, [Mistake(origin, f"host.name is missing, it must be {choices}")]
    name, place = settings["host.name"]
    if isinstance(name, str) and name in HOSTS:
        return name, []
    return None, [Mistake(place, f"host.name must be {choices}, got {show(name)}{guess(name, HOSTS)}")]


def block_classes(host: str | None) -> dict[str, type]:
    """The dataclass of every block; without a host the host's is left out."""
    blocks = {block: hint for block, hint in HINTS.items() if block not in CHOICES}
    classes = {block: next(t for t in (*get_args(hint), hint) if t is not NoneType) for block, hint in blocks.items()}
    del classes["host"]
    return classes if host is None else {"host": HOSTS[host][0], **classes}


def build_block(block: str, cls: type, settings: Settings, origin: Place) -> tuple[Any, list[Mistake]]:
    """The value of one block: its dataclass, or None where it is null or wrong."""
    given = {key.removeprefix(f"{block}."): s for key, s in settings.items() if is_inside(key, block)}
    given = {name: setting for name, setting in given.items() if name in names(cls)}
    whole = settings.get(block)
    if whole is not None and whole.value != {}:
        allowed = whole.value is None and block in OPTIONAL
        problem = f"{block} must be a block of settings{' or null' if block in OPTIONAL else ''}, got {show(whole.value)}"
        return None, [] if allowed else [Mistake(whole.place, problem)]
    if not given and whole is None and default_of(block) is None:
        return None, []
    place = min((s.place for s in (*given.values(), *([whole] if whole else []))), default=origin)
    return build(block, cls, given, place)


def build(block: str, cls: type, given: Settings, place: Place) -> tuple[Any, list[Mistake]]:
    """One block from its fields, or None with all that is wrong with them.

    A dataclass checks its rules only where every type is right. So values of a wrong type are left out and the rest is
    tried again; rules that name such a field say nothing then.
    """
    unfit = {name: rule for name, s in given.items() if (rule := unfit_for_json(s.value))}
    mistakes = [
        Mistake(given[name].place, f"{block}.{name} must {rule}, got {show(given[name].value)}")
        for name, rule in unfit.items()
    ]
    wrong = set(unfit)
    while True:
        values = {name: setting.value for name, setting in given.items() if name not in wrong}
        try:
            made = TypeAdapter(cls).validate_json(json.dumps(values, default=str), strict=True)
            return None if mistakes else made, mistakes
        except ValidationError as error:
            problems = {name: text for name, text in explain(error, block, cls) if not mentions(text, wrong)}
        mistakes += [Mistake(given[name].place if name in given else place, text) for name, text in problems.items()]
        if not problems.keys() & values.keys():
            return None, mistakes
        wrong |= problems.keys()


def unfit_for_json(value: Any) -> str | None:
    """What a value must be for JSON, and with it pydantic, to hold it; None where it does."""
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(unfit_for_json, value)), None)
    if isinstance(value, float) and not math.isfinite(value):
        return "be finite"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "lie between -2^63 and 2^63"
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return "be text without halves of characters (surrogates)"
    return None


def explain(error: ValidationError, block: str, cls: type) -> list[tuple[str, str]]:
    """(field, sentence) for everything that pydantic or the dataclass's own rules found."""
    found = []
    for item in error.errors():
        rules = item.get("ctx", {}).get("error")
        if isinstance(rules, FieldErrors):
            found += [(name, f"{block}.{name} {problem}") for name, problem in rules.problems.items()]
            continue
        name, *element = item["loc"]
        got = show(item["input"])
        what = WORDS.get(item["type"], item["msg"])
        if item["type"] == "missing":
            found.append((name, f"{block}.{name} is missing"))
        elif item["type"] == "literal_error":
            options = get_args(get_type_hints(cls)[name])
            found.append((name, f"{block}.{name} must be {' or '.join(options)}, got {got}{guess(item['input'], options)}"))
        else:
            problem = f"{block}.{name} must be {'a list, each entry ' if element else ''}{what}, got {got}"
            quotable = item["type"] == "string_type" and isinstance(item["input"], (int, float))
            found.append((name, problem + (quoted(f"{block}.{name}", item["input"], element) if quotable else "")))
    return found


def quoted(key: str, value: Any, element: list) -> str:
    """How to write a number, or true and false, that is meant as text: in a shell the quotes need quotes."""
    text = f'"{show(value)}"'
    text = f"[{text}]" if element else text
    return f"; as text: {text}, on the command line '{key}={text}'"


def mentions(text: str, wrong: set[str]) -> bool:
    return bool(wrong & set(text.replace(":", " ").replace(",", " ").split()))


def unknown_keys(settings: Settings, host: str | None) -> list[Mistake]:
    """Keys that no block has, each with the nearest valid one."""
    blocks, mistakes = block_classes(host), []
    known = known_keys(host)
    for key, setting in settings.items():
        if key in known or key in blocks or key == "host":
            continue
        owners = [name for name in HOSTS if key in known_keys(name)]
        if host is not None and owners:
            problem = f"{key} belongs to {' and '.join(owners)}, but host.name is {host}"
        else:
            near = nearest(key, known) or nearest(key, known_keys())
            problem = f"unknown key {show(key)}" + (f", did you mean {near}?" if near else "")
        mistakes.append(Mistake(setting.place, problem))
    return mistakes


def known_keys(host: str | None = None) -> list[str]:
    """Every dotted key, of one host or of all of them."""
    keys = [
        f"{block}.{name}"
        for h in ([host] if host else HOSTS)
        for block, cls in block_classes(h).items()
        for name in names(cls)
    ]
    return list(dict.fromkeys([*keys, *CHOICES]))


def nearest(key: str, known: list[str]) -> str | None:
    """The valid key most like this one: as a whole, in its own block first, or by its last word.

    Of several with that last word the first is meant, but `groups` are denoising's sooner than Group DETR's.
    """
    block, _, name = key.rpartition(".")
    inside = [k for k in known if k.rpartition(".")[0] == block]
    words = {k.rpartition(".")[2]: k for k in sorted(reversed(known), key=lambda k: is_inside(k, "noise"))}
    if not block and name in words:
        return words[name]
    for candidates in (inside, known):
        if near := difflib.get_close_matches(key, candidates, n=1, cutoff=0.75):
            return near[0]
    near = difflib.get_close_matches(name, words, n=1, cutoff=0.75)
    return words[near[0]] if near else None


def names(cls: type) -> list[str]:
    return [field.name for field in fields(cls)]


def default_of(block: str) -> Any:
    """What a block is where nothing is said of it; MISSING stands for 'must be built'."""
    return next(field.default for field in fields(Config) if field.name == block)


def guess(value: Any, options: Any) -> str:
    near = difflib.get_close_matches(str(value), list(options), n=1)
    return f", did you mean {near[0]}?" if near else ""


def show(value: Any) -> str:
    """A value as in a preset, its beginning where it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return brief(text, LONGEST)


def override_for(flag: str, value: str, block: str = "") -> str | None:
    """What a flag such as `--lr 3` was probably meant to be: `train.lr=3`, a setting of `block` first."""
    name, known = flag.lstrip("-").replace("-", "_"), known_keys()
    key = f"{block}.{name}" if f"{block}.{name}" in known else nearest(name, known)
    return f"{key}={value}" if key else None
