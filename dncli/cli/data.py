"""`dndetr data`: the generated dataset, and a look at your own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dndetr.cli.options import DEFAULT_PRESET, Overrides, preset_names
from dndetr.console import say

if TYPE_CHECKING:
    from dndetr.config import Config

EXIT_DEFECTS = 1

Root = Annotated[str, typer.Argument(metavar="[ROOT]", help="Folder or .zip of the dataset, or shapes.", show_default=False)]

app = typer.Typer(no_args_is_help=True, help="Make the generated dataset, or examine your own.")


@app.command()
def shapes(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")],
    train: Annotated[int, typer.Option(metavar="N", help="Training images.")] = 2000,
    val: Annotated[int, typer.Option(metavar="N", help="Validation images.")] = 200,
    size: Annotated[int, typer.Option(metavar="PX", help="Side of an image in pixels.")] = 96,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed makes other images.")] = 0,
) -> None:
    """Make the generated dataset: textured shapes in COCO format.

    Example: [bold]dndetr data shapes --out shapes --train 500[/bold]
    """
    from dndetr.data.shapes import make_shapes

    make_shapes(out, train=train, val=val, size=size, seed=seed)
    say(f"{out}: {train} training and {val} validation images")


@app.command()
def check(
    root: Root = "shapes",
    overrides: Overrides = None,
    queries: Annotated[
        int | None, typer.Option(metavar="N", help="Report images with more objects than this.", show_default=False)
    ] = None,
) -> None:
    """Count a dataset and name every defect; exit code 1 if there are any.

    Example: [bold]dndetr data check COCO --queries 300[/bold]
    """
    from dndetr.data.check import check_dataset, lines
    from dndetr.data.images import reading_of
    from dndetr.data.layouts import find_dataset
    from dndetr.training.report import Report

    config = settings_for(root, overrides)
    dataset = find_dataset(config.data, config.train.seed)
    reading = reading_of(config.data)
    report = check_dataset(dataset, queries, lambda images: Report().track(images, "opening images"), reading)
    say("\n".join(lines(report)))
    if report.defects:
        raise typer.Exit(EXIT_DEFECTS)


@app.command()
def convert(
    root: Annotated[str, typer.Argument(metavar="SRC", help="Folder or .zip of the dataset, or shapes.", show_default=False)],
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")],
    overrides: Overrides = None,
) -> None:
    """Write any dataset that is understood in COCO 2017's layout: images byte for byte, boxes as they are, no masks.

    Example: [bold]dndetr data convert export.zip --to mine data.holdout=0.1[/bold]
    """
    from dndetr.data.convert import convert
    from dndetr.data.layouts import find_dataset
    from dndetr.training.report import Report

    config = settings_for(root, overrides)
    dataset = find_dataset(config.data, config.train.seed)
    say("\n".join(convert(dataset, to, track=lambda images: Report().track(images, "copying images"))))


@app.command()
def stats(
    root: Root = "shapes",
    overrides: Overrides = None,
    preset: Annotated[
        str,
        typer.Option(metavar="PRESET", help="Name or YAML file: whose settings are looked at.", autocompletion=preset_names),
    ] = DEFAULT_PRESET,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it, too.", show_default=False)] = None,
) -> None:
    """Measure a dataset to choose settings by: objects an image, sizes, forms, classes, and what the detector will see.

    Example: [bold]dndetr data stats COCO --preset dn-deform-lite data.eval_size=320 --out coco.png[/bold]
    """
    from dndetr.data.layouts import find_dataset
    from dndetr.data.stats import stats

    config = settings_for(root, overrides, preset)
    stats(find_dataset(config.data, config.train.seed), config, preset, out)


@app.command()
def look(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")],
    preset: Annotated[
        str, typer.Argument(metavar="[PRESET]", help="Name or YAML file.", autocompletion=preset_names)
    ] = DEFAULT_PRESET,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Images to draw.")] = 16,
) -> None:
    """Draw training images as the detector sees them in the first epoch, and the noised queries that it is told beside them.

    Example: [bold]dndetr data look dn-deform-lite data.root=COCO --out look[/bold]
    """
    from dndetr.data.look import look
    from dndetr.resolve import load_preset

    settings = overrides or []
    if is_setting(preset):
        preset, settings = DEFAULT_PRESET, [preset, *settings]
    say(look(load_preset(preset, settings).config, out, count))


def settings_for(root: str, overrides: list[str] | None, preset: str = DEFAULT_PRESET) -> Config:
    """The settings of a preset with this dataset; a first argument that is a setting names no folder."""
    from dataclasses import replace

    from dndetr.resolve import load_preset

    if is_setting(root):
        return load_preset(preset, [root, *(overrides or [])]).config
    config = load_preset(preset, overrides or []).config
    return replace(config, data=replace(config.data, root=root))


def is_setting(argument: str) -> bool:
    """Whether an argument is KEY=VALUE, and not the name of something that is there."""
    return "=" in argument and not os.path.exists(argument)
