"""The list of presets: by table of the paper and detector, each baseline beside the same detector with denoising."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from dndetr.cli.options import DEFAULT_PRESET
from dndetr.resolve import Summary
from dndetr.settings import is_among

SMALL = 0  # in the place of a table: no row of the paper
TITLES = {
    SMALL: f"On a CPU, in minutes (by default {DEFAULT_PRESET}; lite: your own images)",
    1: "Table 1: features of one scale, 50 epochs (DETR: 500)",
    2: "Table 2: 12 epochs",
    3: "Table 3: denoising in other detectors",
    4: "Table 4: features of several scales, 50 epochs",
    7: "Table 7: denoising in half of the epochs",
}
SCHEDULE = ("train.epochs", "train.drop_epoch")

Pair = tuple[Summary | None, Summary | None]  # without and with denoising


def listing(presets: Sequence[Summary]) -> list[str]:
    """The lines. Headings begin at the margin, detectors (`host.name`) and their presets further in; no line is broken."""
    wide = max(len(preset.name) for preset in presets)
    lines = [f"    {'without denoising':{wide}}    AP  {'with denoising':{wide}}    AP"]
    for table in sorted({table for preset in presets for table in tables(preset)}):
        lines += ["", TITLES.get(table, f"Table {table}")]
        hosts = defaultdict(list)
        for preset in presets:
            if table in tables(preset):
                hosts[preset.settings["host.name"]].append(preset)
        for host in sorted(hosts):
            lines += [f"  {host}", *(f"    {show(pair, wide)}" for pair in sorted(pairs(hosts[host]), key=order))]
    return lines


def tables(preset: Summary) -> list[int]:
    """The tables that hold a preset's row."""
    return [preset.paper["table"], *preset.paper.get("also", [])] if preset.paper else [SMALL]


def pairs(presets: Iterable[Summary]) -> Iterator[Pair]:
    """Presets that differ in nothing but denoising and the length of training; None beside one that is alone."""
    same = defaultdict(lambda: ([], []))
    for preset in presets:
        baselines, denoised = same[form(preset)]
        (denoised if has_noise(preset) else baselines).append(preset)
    for baselines, denoised in same.values():
        yield from zip_longest(baselines, denoised)


def form(preset: Summary) -> frozenset[tuple[str, str]]:
    """What a preset sets, without what may differ in a pair."""
    kept = {key: value for key, value in preset.settings.items() if not is_among(key, ("noise", "paper", *SCHEDULE))}
    return frozenset((key, repr(value)) for key, value in kept.items())


def has_noise(preset: Summary) -> bool:
    return preset.settings.get("noise", {}) is not None


def order(pair: Pair) -> tuple[float, str]:
    """What has less AP comes first, what has none by its name."""
    first = next(filter(None, pair))
    return first.paper.get("ap", 0.0), first.name


def show(pair: Pair, wide: int) -> str:
    """`dab-r50-50ep    42.2  dn-dab-r50-50ep    44.1  +1.9`, names `wide` characters wide."""
    names = [preset.name if preset else "" for preset in pair]
    aps = [preset.paper["ap"] if preset and preset.paper else None for preset in pair]
    gain = "" if None in aps else f"  {aps[1] - aps[0]:+.1f}"
    cells = [f"{name:{wide}}  {'' if ap is None else f'{ap:.1f}':>4}" for name, ap in zip(names, aps, strict=True)]
    return f"{'  '.join(cells)}{gain}".rstrip()
