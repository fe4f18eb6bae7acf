"""What the benchmarks share: two sides that run in turn, and the table of how their times compare.

Absolute times mean nothing from one machine or hour to the next. So functions take turns, A B A B ..., on one thread, CPU time
is counted (other programs do not show in it), and what is judged is the ratio of medians. The spread beside it is that of the
ratios of the single rounds. Each side lives in a process of its own and waits while the other one works: what one does to the
process, as to the allocator of memory, is not felt by the other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from dndetr.doctor import processor_name

Functions = dict[str, Callable[[], object]]
Build = Callable[[], Functions]


class Row(NamedTuple):
    """Two functions of a contest to compare, and what their ratio has to reach."""

    what: str
    ours: str
    peer: str
    line: float | None = None  # None: for information
    great: float | None = None

    @property
    def is_cost(self) -> bool:
        """The ratio is ours / peer and should be low, not peer / ours and high."""
        return self.line is not None and self.great is not None and self.great < self.line


class Contest(NamedTuple):
    """Sides, each a function that builds its functions in its own process, and the rows that they give."""

    sides: Sequence[Build]
    rows: Sequence[Row]
    rounds: int
    clock: Callable[[], float] = time.process_time


def main(description: str, contests: Sequence[Contest]) -> None:
    """The command line of a benchmark: all rows, or those whose text holds all of the given words."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("words", nargs="*", help="only the rows that hold all of these words")
    parser.add_argument("--rounds", type=int, help="how often each function is timed")
    options = parser.parse_args()
    print(f"{processor_name()}, torch {torch.__version__}, 1 thread")
    print(f"{'what':<44}{'ours ms':>10}{'peer ms':>10}{'ratio':>8}  {'spread':<13}line (great)")
    for contest in contests:
        rows = [row for row in contest.rows if all(word in row.what.split() for word in options.words)]
        if rows:
            times = take_turns(contest, rows, options.rounds or contest.rounds)
            for row in rows:
                print(line(row, times[row.ours], times[row.peer]), flush=True)


def take_turns(contest: Contest, rows: Sequence[Row], rounds: int) -> dict[str, list[float]]:
    """Seconds of every function that the rows ask for, round by round, after one run that is not counted."""
    asked = {name for row in rows for name in (row.ours, row.peer)}
    with ExitStack() as stack:
        players = {}
        for build in contest.sides:
            connection = stack.enter_context(process(build, contest.clock))
            players |= {name: connection for name in connection.recv() if name in asked}
        times = {name: [] for name in players}
        for round in range(1 + rounds):
            for name, connection in players.items():
                connection.send(name)
                seconds = connection.recv()
                if round:
                    times[name].append(seconds)
    return times


def process(build: Build, clock: Callable[[], float]) -> Connection:
    """Start a side. When its connection closes it ends."""
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=serve, args=(build, clock, theirs), daemon=True).start()
    theirs.close()
    return ours


def serve(build: Build, clock: Callable[[], float], connection: Connection) -> None:
    """A side's process: build, tell the names, then run what is asked for and answer with the seconds."""
    torch.set_num_threads(1)
    functions = build()
    connection.send(list(functions))
    while True:
        try:
            function = functions[connection.recv()]
        except EOFError:
            return
        start = clock()
        function()
        connection.send(clock() - start)


def line(row: Row, ours: list[float], peer: list[float]) -> str:
    above, below = (ours, peer) if row.is_cost else (peer, ours)
    ratio = statistics.median(above) / statistics.median(below)
    single = [a / b for a, b in zip(above, below, strict=True)]
    spread = f"{min(single):.2f}-{max(single):.2f}"
    times = "".join(f"{1000 * statistics.median(x):>10.1f}" for x in (ours, peer))
    return f"{row.what:<44}{times}{ratio:>8.2f}  {spread:<13}{verdict(row, ratio)}".rstrip()


def verdict(row: Row, ratio: float) -> str:
    if row.line is None:
        return ""
    sign, bars = -1 if row.is_cost else 1, [bar for bar in (row.line, row.great) if bar is not None]
    reached = sum(sign * ratio >= sign * bar for bar in bars)
    great = "" if row.great is None else f" ({row.great:g})"
    return f"{'<=' if row.is_cost else '>='} {row.line:g}{great}".ljust(15) + ("short", "reached", "great")[reached]


def extra_memory(function: Callable[[], object]) -> float:
    """MiB that a call needs at its peak besides what this process holds already."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmHWM")
    function()
    return memory("VmHWM") - before


def memory(field: str) -> float:
    """MiB that Linux notes of this process: VmHWM is the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
