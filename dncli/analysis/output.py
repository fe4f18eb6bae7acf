"""Where analyses write: tables and sentences to the console, CSV files to a folder, each whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from dndetr.console import console
from dndetr.files import replace_text, writable


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """The folder, made where it is missing. What cannot be written becomes a UserError."""
    with writable(folder, "give another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def save_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A line a row, under the keys of the first one."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())


def table(*headings: str) -> Table:
    """A table without lines whose columns, but for the first, are numbers."""
    empty = Table(box=None, padding=(0, 2, 0, 0))
    for i, heading in enumerate(headings):
        empty.add_column(escape(heading), justify="right" if i else "left", overflow="fold")
    return empty


def show(title: str, content: Table) -> None:
    """A table under its title, and an empty line."""
    console.print(title, style="bold", markup=False)
    console.print(content, "")


def say(*lines: str) -> None:
    """Sentences, which a terminal breaks between words and a pipe does not break."""
    for line in lines:
        console.print(line, markup=False)
