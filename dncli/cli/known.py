"""`dndetr known-objects` and `known-labels`: what a detector gains from what is known of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dndetr.cli.options import DEFAULT_PRESET, Checkpoint, Overrides, TrustPickle, preset_names


def known_objects(
    overrides: Overrides = None,
    split: Annotated[float, typer.Option(min=0, max=1, help="Share of the classes that are known.")] = 0.7,
    unknown: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="The unknown classes, in place of a random split.", show_default=False),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Name or YAML file, with denoising.", autocompletion=preset_names)
    ] = DEFAULT_PRESET,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the split and of the trainings.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="So many seeds, from --seed on.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs that are trained at once.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder; runs/known-objects-SPLIT-PRESET by default.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the classes and the runs; train nothing.")] = False,
) -> None:
    """Train a detector that is given the objects of some classes and finds those of the others (Sec. 5.7.1, Table 9).

    The same command goes on after an interruption. Beside it stand two detectors that see the unknown classes alone.

    Example: [bold]dndetr known-objects --split 0.7 --seeds 3[/bold]
    """
    from dndetr.known.objects import known_objects

    names = [name.strip() for name in (unknown or "").split(",") if name.strip()]
    options = {"seed": seed, "seeds": seeds, "jobs": jobs, "out": out, "dry_run": dry_run}
    known_objects(preset, overrides or [], split=split, unknown=names, **options)


def known_labels(
    ckpt: Checkpoint,
    overrides: Overrides = None,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Of the fine-tuning.")] = 1,
    control: Annotated[bool, typer.Option(help="Fine-tune a second time with nothing told, to compare with.")] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder; runs/known-labels-RUN by default.", show_default=False)
    ] = None,
    trust: TrustPickle = False,
) -> None:
    """Fine-tune a detector with the class labels of each image as queries, and measure what they bring (Table 10).

    Example: [bold]dndetr known-labels --ckpt runs/dn-deform-tiny --epochs 2[/bold]
    """
    from dndetr.known.labels import known_labels

    known_labels(ckpt, overrides or [], epochs=epochs, control=control, out=out, trust=trust)
