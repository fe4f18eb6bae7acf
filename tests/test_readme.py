"""Every command that the documents show is one that dndetr understands, and every file that they name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from dndetr.cli import app
from dndetr.cli.options import DEFAULT_PRESET
from dndetr.models.hosts import HOSTS
from dndetr.resolve import FOLDER, load_preset

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path.name: path.read_text() for path in DOCUMENTS}


def commands() -> list[tuple[str, str]]:
    """(document, command) of every line in a shell block, lines ending in a backslash joined."""
    found = []
    for name, text in TEXT.items():
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(name, line.partition(" #")[0].strip()) for line in lines if line.strip()]
    return found


def dndetr_arguments(command: str) -> list[str] | None:
    """What dndetr gets, started by its name or by torchrun; None for other programs."""
    _, _, after = command.partition("dndetr " if command.startswith("dndetr ") else "-m dndetr ")
    return shlex.split(after) or None


def parsed(arguments: list[str]) -> dict:
    """The parameters of the command that the arguments mean; raises where they mean none."""
    command, name = typer.main.get_command(app), "dndetr"
    context = None
    while hasattr(command, "commands"):
        context = command.make_context(name, [arguments[0]], parent=context)
        command, name, arguments = command.commands[arguments[0]], arguments[0], arguments[1:]
    return command.make_context(name, arguments, parent=context).params


@pytest.mark.parametrize(("document", "command"), commands())
def test_every_command_is_understood(document, command):
    arguments = dndetr_arguments(command)
    if arguments is None:
        program, *rest = shlex.split(command)
        assert program in ("make", "pip", "."), command
        assert program != "make" or set(rest) <= targets(), command
        return
    parameters = parsed(arguments)
    if arguments[0] == "train":
        load_preset(parameters["preset"] or DEFAULT_PRESET, parameters["overrides"] or [])
    if arguments[0] in ("presets", "info"):
        load_preset(parameters.get("name") or parameters["preset"])


def targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("name", TEXT)
def test_every_preset_and_file_is_there(name):
    for preset in re.findall(r"`([a-z][a-z0-9-]*-(?:\d+ep|tiny|lite))\b", TEXT[name]):
        assert (FOLDER / f"{preset}.yaml").is_file(), preset
    for file in re.findall(r"\]\(([^):]+)\)", TEXT[name]):
        assert (ROOT / name).parent.joinpath(file).exists() or (ROOT / "docs" / file).exists(), file
    for file in re.findall(r"`((?:models|tests|dncli|presets)/[\w/.-]*)`", TEXT[name]):
        assert (ROOT / file).exists(), file


def test_every_host_is_named():
    assert [name for name in HOSTS if f"`{name}`" not in TEXT["README.md"]] == []


def test_the_two_commands_come_first():
    first = re.search(r"```sh\n(.*?)```", TEXT["README.md"], flags=re.DOTALL)[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_a_wrong_command_would_be_found():
    for wrong in ("dndetr trian", "dndetr train --lr 3", "dndetr train --preset"):
        with pytest.raises(Exception, match=r"trian|No such option|requires an argument"):
            parsed(dndetr_arguments(wrong))
    assert len(commands()) > 10
