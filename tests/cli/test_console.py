import io
import sys

import pytest
from rich.table import Table

from dndetr import console
from dndetr.console import UserError, fail, open_console

LONG = "x" * 50 + " " + "word " * 60 + "end"


class Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def stream(monkeypatch):
    """Makes stdout and stderr one stream, a terminal of 40 columns or a pipe."""
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")

    def make(*, terminal: bool) -> Stream:
        made = Stream(terminal)
        monkeypatch.setattr(sys, "stdout", made)
        monkeypatch.setattr(sys, "stderr", made)
        return made

    return make


@pytest.mark.parametrize("stderr", [False, True])
def test_a_pipe_gets_whole_plain_lines(stream, stderr):
    out = stream(terminal=False)
    open_console(stderr=stderr).print(LONG, style="red")
    assert out.getvalue() == LONG + "\n"


def test_a_pipe_gets_whole_table_rows(stream):
    out = stream(terminal=False)
    table = Table("a", "b", box=None)
    table.add_row("[bold]one[/bold]", LONG)
    open_console().print(table)
    assert [line.split() for line in out.getvalue().splitlines()] == [["a", "b"], ["one", *LONG.split()]]


def test_a_terminal_gets_colour_and_lines_of_its_width(stream):
    out = stream(terminal=True)
    open_console().print("word " * 20, style="red")
    assert out.getvalue().startswith("\x1b[31m")
    assert len(out.getvalue().splitlines()) == 3


def test_no_color_is_respected(stream, monkeypatch):
    out = stream(terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    open_console().print("word", style="red")
    assert out.getvalue() == "word\n"


def test_numbers_and_paths_are_not_painted(stream):
    out = stream(terminal=True)
    open_console().print("3 of data/x: 'a'")
    assert out.getvalue() == "3 of data/x: 'a'\n"


def test_the_two_consoles_speak_on_the_two_streams(capsys):
    console.console.print("result")
    console.errors.print("mistake")
    assert capsys.readouterr() == ("result\n", "mistake\n")


def test_mistakes_are_printed_as_they_are_one_a_line(capsys):
    fail("p.yaml:1: [bold]x[/bold] [1, 2]", LONG)
    assert capsys.readouterr() == ("", f"p.yaml:1: [bold]x[/bold] [1, 2]\n{LONG}\n")


def test_line_100_is_no_picture(capsys):
    fail("p.yaml:100: unknown key 'lr'")
    console.console.print("p.yaml:1234: :smile:", markup=False)
    assert capsys.readouterr() == ("p.yaml:1234: :smile:\n", "p.yaml:100: unknown key 'lr'\n")


def test_mistakes_are_red_and_not_broken_on_a_terminal(stream, monkeypatch):
    out = stream(terminal=True)
    monkeypatch.setattr(console, "errors", open_console(stderr=True))
    fail(LONG)
    assert out.getvalue() == f"\x1b[31m{LONG}\x1b[0m\n"


def test_an_error_of_the_user_keeps_its_lines():
    error = UserError("a", "b")
    assert (error.lines, str(error)) == (("a", "b"), "a\nb")
