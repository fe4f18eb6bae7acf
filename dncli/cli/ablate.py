"""`dndetr ablate`: the paper's ablation studies, and your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dndetr.cli.options import Overrides, preset_names


def study_names(incomplete: str) -> list[str]:
    from dndetr.ablation.plan import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def ablate(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="denoising (Table 1), components (Table 5), groups (Table 6), noise (Fig. 8), speedup (Table 7), or a YAML "
            "file of your own.",
            autocompletion=study_names,
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Name or YAML file; the study's own by default.", autocompletion=preset_names, show_default=False),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each row.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, metavar="N", help="They have this seed and the next ones.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs that are trained at once.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the runs and of results.md, .csv and .png; runs/ablate-STUDY-PRESET by default.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained and how long it takes; write nothing.")
    ] = False,
) -> None:
    """Train the rows of an ablation study with several seeds each, and compare them with the paper's numbers.

    The same command goes on after an interruption; with more seeds, it trains the new ones only.

    Example: [bold]dndetr ablate components --seeds 3 --jobs 2 train.epochs=6[/bold]

    Example: [bold]dndetr ablate noise --preset dn-deform-tiny --dry-run[/bold]
    """
    from dndetr.ablation.command import ablate as run

    run(study, preset, overrides or [], seeds=seeds, first_seed=first_seed, jobs=jobs, out=out, dry_run=dry_run)
