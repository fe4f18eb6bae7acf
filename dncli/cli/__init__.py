"""The command line: thin leaves that import what they need when they run, so that every --help answers at once."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import Annotated

import typer

from dndetr import __version__
from dndetr.cli import ablate, about, analyze, data, detector, known, labels
from dndetr.console import UserError, fail, in_one_line, listen

PATIENCE = 10  # seconds; who leaves at once would have the first process ended before it speaks
EXIT_USER, EXIT_INTERRUPTED = 2, 130

NAMES = {"evaluate": "eval"}  # of commands that cannot be called so in Python

app = typer.Typer(
    name="dndetr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train DETR-like detectors with query denoising (DN-DETR), on any data.\n\n"
    "Begin with: [bold]dndetr train[/bold] (a small detector on generated data, in minutes on a CPU)",
)
for command in (
    detector.train, detector.evaluate, detector.predict, ablate.ablate, known.known_objects, known.known_labels,
    about.presets, about.info, about.doctor,
):  # fmt: skip
    app.command(NAMES.get(command.__name__))(command)
app.add_typer(data.app, name="data")
app.add_typer(analyze.app, name="analyze")
app.command("analyze-instability", hidden=True)(analyze.instability)
app.command("known-label-detect", hidden=True)(known.known_labels)
app.add_typer(labels.app, name="labels")


def main() -> None:
    """Run the command and exit.

    0; 1 for defects or an internal error; 2 for a mistake of the user; 3 for a loss that is not finite; 130 for Ctrl-C and
    143 for SIGTERM.
    """
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1  # wherever it stands
    listen()
    usage_error = typer.BadParameter.__base__  # UsageError of the click that this typer brings
    try:
        code = app(arguments, prog_name="dndetr", standalone_mode=False)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, UserError):
            others_tell = os.environ.get("LOCAL_RANK", "0") != "0" and not error.alone
            if others_tell:
                time.sleep(PATIENCE)  # torchrun ends this process when the first one has told it
            code = say(error.code, *error.lines)
        elif isinstance(error, usage_error):
            code = say(EXIT_USER, *usage(error, arguments))
        elif isinstance(error, typer.Abort):
            code = EXIT_INTERRUPTED
        else:
            told = in_one_line(f"{type(error).__name__}: {error}")
            code = say(1, f"dndetr: internal error: {told} (run again with --debug for the traceback)")
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code if isinstance(code, int) else 0)


def say(code: int, *lines: str) -> int:
    fail(*lines)
    return code


def usage(error: Exception, arguments: list[str]) -> list[str]:
    """What is wrong with a command line; a flag that is a setting is answered with its override."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else command_path(arguments)
    message = error.format_message()
    lines = [f"{path}: {message} (see {path} --help)"] if message else []  # without a command the help says it all
    flag = getattr(error, "option_name", None)
    if flag is not None and path in ("dndetr train", "dndetr eval", "dndetr info"):
        from dndetr.schema import override_for

        value = next((a.partition("=")[2] for a in arguments if a.startswith(f"{flag}=")), "")
        if not value and flag in arguments[:-1]:
            value = arguments[arguments.index(flag) + 1]
        if hint := override_for(flag, value or "VALUE", block=path.removeprefix("dndetr ")):
            lines.append(f"settings are given without dashes: {hint}")
    return lines


def command_path(arguments: list[str]) -> str:
    """The command that the arguments mean, as far as there is one."""
    command, path = typer.main.get_command(app), "dndetr"
    for word in arguments:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        path += f" {word}"
    return path


@app.callback(invoke_without_command=True)
def dndetr(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:  # --debug is taken by main
        print(f"dndetr {__version__}")
        raise typer.Exit
