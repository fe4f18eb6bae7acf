"""`dndetr presets`, `info` and `doctor`: what there is, what it costs, and whether it works here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dndetr.cli.options import Overrides, preset_names
from dndetr.console import UserError, console, fail, say

EXIT_PROBLEMS = 1


def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show this one whole.", autocompletion=preset_names, show_default=False),
    ] = None,
) -> None:
    """List the presets by table and detector, or show all settings of one and where each value comes from.

    Example: [bold]dndetr presets dn-deform-tiny[/bold]
    """
    from dndetr import resolve as library

    if name is not None:
        return say(library.to_yaml(library.load_preset(name)))
    from dndetr.listing import listing

    for line in listing(library.list_presets()):
        console.print(line, style="" if line.startswith(" ") else "bold", markup=False, soft_wrap=True)
    say("\nAP is what the paper prints. `dndetr presets NAME` shows all settings of one.")


def info(
    preset: Annotated[str, typer.Argument(help="Name or YAML file.", autocompletion=preset_names, show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Count parameters and multiply-adds of a preset, beside the paper's numbers.

    Example: [bold]dndetr info dn-dab-r50-50ep noise.groups=10[/bold]
    """
    from dndetr.info import info, report
    from dndetr.resolve import load_preset

    resolved = load_preset(preset, overrides or [])
    console.print(report(resolved, info(resolved)))


def doctor(
    op: Annotated[str, typer.Option(metavar="auto|native|torch", help="As in the setting op.")] = "auto",
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Compute a step again that was not finite, and say where it begins.", show_default=False
        ),
    ] = None,
) -> None:
    """Say what is installed here, which devices and compilers there are, and how deformable attention is computed.

    Example: [bold]dndetr doctor[/bold]
    """
    if replay is not None:
        from dndetr.training.incidents import replay as compute_again

        return say("\n".join(compute_again(replay)))
    from dndetr.models.native import CHOICES

    if op not in CHOICES:
        raise UserError(f"--op must be {' or '.join(CHOICES)}, got {op!r}")
    from dndetr.doctor import doctor

    findings, problems = doctor(op)
    say(findings)
    if problems:
        fail(*problems)
        raise typer.Exit(EXIT_PROBLEMS)
