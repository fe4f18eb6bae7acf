"""How the command speaks: one console for people, one error for mistakes."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave. Each line says what is wrong, where, and how to mend it.

    The command prints the lines and exits with code 2; `--debug` shows the traceback.
    """

    def __init__(self, *lines: str):
        super().__init__("\n".join(lines))
        self.lines = lines
