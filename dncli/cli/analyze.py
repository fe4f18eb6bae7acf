"""`dndetr analyze`: what the paper measures of trained detectors, from the runs that trainings left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dndetr.cli.options import Overrides, TrustPickle, preset_names

app = typer.Typer(no_args_is_help=True, help="Measure runs as the paper does: matching, anchors, curves and cost.")

Runs = Annotated[list[Path], typer.Option("--ckpt", "--run", metavar="RUN", help="A run folder; may be given again.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of an evaluation, such as data.root=DATASET.", show_default=False),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder to write to; RUN/analysis of the first run.", show_default=False)
]


@app.command("is")
def instability(
    ckpt: Runs,
    overrides: Settings = None,
    layers: Annotated[bool, typer.Option("--layers", help="For every decoder layer, not for the last one only.")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Match with the checkpoints of a run, not as its training noted.")
    ] = False,
    out: Out = None,
    trust: TrustPickle = False,
) -> None:
    """Instability of bipartite matching after each epoch (Eq. 1 and 2, Fig. 2): a table, a plot and a CSV file.

    Example: [bold]dndetr analyze is --ckpt runs/dn --ckpt runs/baseline[/bold]
    """
    from dndetr.analysis.changes import analyze_instability

    analyze_instability(ckpt, layers=layers, recompute=recompute, overrides=overrides or [], out=out, trust=trust)


@app.command()
def anchors(
    ckpt: Runs,
    overrides: Settings = None,
    images: Annotated[int, typer.Option(min=0, metavar="N", help="Validation images to draw arrows on.")] = 4,
    out: Out = None,
    trust: TrustPickle = False,
) -> None:
    """Distance from initial anchors to the boxes that they match (Sec. 3.2, Fig. 3), and the arrows of Fig. 4.

    Example: [bold]dndetr analyze anchors --ckpt runs/dn --ckpt runs/baseline --images 6[/bold]
    """
    from dndetr.analysis.anchors import analyze_anchors

    analyze_anchors(ckpt, images=images, overrides=overrides or [], out=out, trust=trust)


@app.command()
def curves(run: Runs, out: Out = None) -> None:
    """AP over epochs and over time (Fig. 1 and 7), and how much sooner one run reaches the AP of another.

    Example: [bold]dndetr analyze curves --run runs/dn --run runs/baseline[/bold]
    """
    from dndetr.analysis.curves import analyze_curves

    analyze_curves(run, out=out)


@app.command()
def cost(
    preset: Annotated[
        list[str],
        typer.Option(metavar="PRESET", help="Name or YAML file; may be given again.", autocompletion=preset_names),
    ],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=0, metavar="N", help="Training steps to time, 0 = only count.")] = 5,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(min=1, metavar="H W", help="Height and width of an image; the preset's by default.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images a step.")] = 2,
) -> None:
    """Parameters, multiply-adds and seconds of a training step without and with denoising (Table 8).

    Example: [bold]dndetr analyze cost --preset dn-dab-r50-50ep --steps 0[/bold]
    """
    from dndetr.analysis.cost import analyze_cost

    analyze_cost(preset, overrides or [], steps=steps, size=size, batch=batch)
