"""How the command speaks: one console for people, one for mistakes, one error for what the user can mend."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from rich.console import Console

PIPED_WIDTH = 10_000  # where nobody looks, no line is broken or cut


class UserError(Exception):
    """A mistake in what the user gave. Each line says what is wrong, where, and how to mend it.

    The command prints the lines and exits with `code`; `--debug` shows the traceback.
    """

    code = 2
    alone = False  # of several processes this one fails, and must tell it itself

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines


class Lasting(Console):
    """A console whose reader may go away, as in `dndetr train | head`: what is going on goes on, unseen."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # else Python's last flush would fail


def open_console(*, stderr: bool = False) -> Console:
    """Colours and the terminal's width for a terminal, plain lines for a pipe; `NO_COLOR` is respected."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # names of files may be anything
    return Lasting(stderr=stderr, width=None if stream.isatty() else PIPED_WIDTH, highlight=False, emoji=False)


console = open_console()
errors = open_console(stderr=True)


class ToConsole(logging.Handler):
    """Lines of the libraries' loggers, to stderr. Of several processes on a machine the first one warns for all."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING or os.environ.get("LOCAL_RANK", "0") == "0":
            errors.print(record.getMessage(), markup=False, soft_wrap=True)


def listen() -> None:
    """Show what the package's own logger says."""
    logger = logging.getLogger("dndetr")
    logger.setLevel(logging.INFO)
    logger.handlers = [ToConsole()]


def say(text: str) -> None:
    """Print a text to people as it is: no markup, and no line broken or cut."""
    console.print(text, markup=False, soft_wrap=True)


def in_one_line(text: object) -> str:
    return " ".join(str(text).split())


def brief(text: str, limit: int = 300) -> str:
    """The text, or its beginning where it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def shorten(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def fail(*lines: str) -> None:
    """Print mistakes to stderr, one a line, as they are."""
    for line in lines:
        errors.print(line, style="red", markup=False, soft_wrap=True)
