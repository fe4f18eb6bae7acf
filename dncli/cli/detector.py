"""`dndetr train`, `eval` and `predict`: a detector is made, measured and used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dndetr.cli.options import DEFAULT_PRESET, Checkpoint, Overrides, Progressive, Sure, TrustPickle, preset_names
from dndetr.console import UserError


def train(
    overrides: Overrides = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Name or YAML file; {DEFAULT_PRESET} by default.", autocompletion=preset_names, show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/PRESET by default.", show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run in its own folder.")] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Let --resume go on with another value of this setting; `dataset`: other annotations."
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN|FILE", help="Begin with the weights of a checkpoint, and with nothing else of it."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that lies in the way.")] = False,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Set what makes a run give the same bits again, and name what cannot be set."),
    ] = False,
    trust: TrustPickle = False,
) -> None:
    """Train a detector, evaluating after each epoch.

    Example: [bold]dndetr train --preset dn-deform-r50-12ep data.root=COCO[/bold]
    """
    from dndetr.resolve import load_preset

    if resume and (out or init_from or overwrite):
        raise UserError("--resume goes on with a run as it is: leave out --out, --init-from and --overwrite")
    if allow_change and not resume:
        raise UserError("--allow-change is for --resume: a new run has no settings yet that could differ")
    source = preset or DEFAULT_PRESET
    if resume and not preset:
        from dndetr.training.resume import settings_file

        source = settings_file(resume)
    resolved = load_preset(source, overrides or [])

    from dndetr.training.loop import train

    train(
        resolved,
        None if resume else out or Path("runs") / Path(source).stem,
        resume=resume,
        init_from=init_from,
        overwrite=overwrite,
        allow_change=allow_change or [],
        trust=trust,
        deterministic=deterministic,
    )


def evaluate(
    ckpt: Checkpoint,
    overrides: Overrides = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here as well.")] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Evaluate on the classes of the data, trained or not, by the vectors of their names (labels.embeddings).",
        ),
    ] = None,
    labels_from: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Tell the detector the classes of each image, by dndetr labels classify.", show_default=False
        ),
    ] = None,
    likely: Annotated[float, typer.Option(min=0, max=1, help="Probability in that file from which a class is told.")] = 0.5,
    progressive: Progressive = 0,
    sure: Sure = 0.1,
    trust: TrustPickle = False,
) -> None:
    """Measure COCO's AP of a trained detector on the validation images, and what it gains from what it is told.

    Example: [bold]dndetr eval --ckpt runs/dn-deform-tiny[/bold]
    """
    from dndetr.training.commands import Telling, evaluate_command

    telling = Telling(labels_from, likely, progressive, sure)
    evaluate_command(ckpt, overrides or [], json, telling=telling, embeddings=embeddings, trust=trust)


def predict(
    ckpt: Checkpoint,
    paths: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER", help="Images, or folders, gone down into.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for drawn pictures and predictions.json.")],
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Smallest score that is shown.")] = 0.3,
    progressive: Progressive = 0,
    sure: Sure = 0.1,
    embeddings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Look for the classes that are named in this file of vectors (labels.embeddings)."),
    ] = None,
    trust: TrustPickle = False,
) -> None:
    """Find objects in images: drawn pictures and JSON.

    Example: [bold]dndetr predict --ckpt runs/demo photo.jpg --out pictures[/bold]
    """
    from dndetr.predict import predict

    predict(ckpt, paths, out, threshold, rounds=progressive, sure=sure, embeddings=embeddings, trust=trust)
