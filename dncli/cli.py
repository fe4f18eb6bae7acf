"""The command line: thin leaves that import what they need when they run, so that every --help answers at once."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer

from dncli import __version__
from dncli.console import UserError, console, fail, in_one_line, listen

DEFAULT_PRESET = "dn-deform-tiny"
PATIENCE = 10  # seconds; who leaves at once would have the first process ended before it speaks
EXIT_DEFECTS, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="dndetr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train DETR-like detectors with query denoising (DN-DETR), on any data in COCO format.\n\n"
    "Begin with: [bold]dndetr train[/bold] (a small detector on generated data, in minutes on a CPU)",
)
data = typer.Typer(no_args_is_help=True, help="Make the generated dataset, or examine your own.")
app.add_typer(data, name="data")


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
        from dncli.schema import override_for

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


def preset_names(incomplete: str) -> list[str]:
    from dncli.presets import FOLDER

    return sorted(path.stem for path in FOLDER.glob(f"{incomplete}*.yaml"))


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings on top, such as train.lr=2e-4 or noise=null.", show_default=False),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Open a checkpoint that can run code: only of people whom you trust.")
]
Checkpoint = Annotated[Path, typer.Option("--ckpt", metavar="RUN|FILE", help="A run folder (its best epoch) or a .pt file.")]


@app.callback(invoke_without_command=True)
def dndetr(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:  # --debug is taken by main
        print(f"dndetr {__version__}")
        raise typer.Exit


@app.command()
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
    from dncli.presets import load_preset

    if resume and (out or init_from or overwrite):
        raise UserError("--resume goes on with a run as it is: leave out --out, --init-from and --overwrite")
    if allow_change and not resume:
        raise UserError("--allow-change is for --resume: a new run has no settings yet that could differ")
    source = preset or DEFAULT_PRESET
    if resume and not preset:
        from dncli.training.resume import settings_file

        source = settings_file(resume)
    resolved = load_preset(source, overrides or [])

    from dncli.training.loop import train

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


@app.command("eval")
def evaluate(
    ckpt: Checkpoint,
    overrides: Overrides = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers here as well.")] = None,
    trust: TrustPickle = False,
) -> None:
    """Measure COCO's AP of a trained detector on the validation images.

    Example: [bold]dndetr eval --ckpt runs/dn-deform-tiny[/bold]
    """
    from dncli.training.commands import evaluate_command

    evaluate_command(ckpt, overrides or [], json, trust=trust)


@app.command()
def predict(
    ckpt: Checkpoint,
    paths: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER", help="Images, or folders of them.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for drawn pictures and predictions.json.")],
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Smallest score that is shown.")] = 0.3,
    trust: TrustPickle = False,
) -> None:
    """Find objects in images: drawn pictures and JSON.

    Example: [bold]dndetr predict --ckpt runs/demo photo.jpg --out pictures[/bold]
    """
    from dncli.predict import predict

    predict(ckpt, paths, out, threshold, trust=trust)


@app.command()
def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show this one whole.", autocompletion=preset_names, show_default=False),
    ] = None,
) -> None:
    """List the presets, or show all settings of one and where each value comes from.

    Example: [bold]dndetr presets dn-deform-tiny[/bold]
    """
    from dncli import presets as library

    if name is not None:
        return console.print(library.to_yaml(library.load_preset(name)), markup=False, soft_wrap=True)
    from rich.table import Table

    table = Table("preset", "AP", "what it is", box=None, padding=(0, 2, 0, 0))
    for summary in library.list_presets():
        table.add_row(summary.name, str(summary.paper.get("ap", "")), summary.description.partition(":")[0])
    console.print(table)


@app.command()
def info(
    preset: Annotated[str, typer.Argument(help="Name or YAML file.", autocompletion=preset_names, show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Count parameters and multiply-adds of a preset, beside the paper's numbers.

    Example: [bold]dndetr info dn-dab-r50-50ep noise.groups=10[/bold]
    """
    from dncli.info import info, report
    from dncli.presets import load_preset

    resolved = load_preset(preset, overrides or [])
    console.print(report(resolved, info(resolved)))


@app.command()
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
        from dncli.training.incidents import replay as compute_again

        return console.print("\n".join(compute_again(replay)), markup=False, soft_wrap=True)
    from models.native import CHOICES

    if op not in CHOICES:
        raise UserError(f"--op must be {' or '.join(CHOICES)}, got {op!r}")
    from dncli.doctor import doctor

    findings, problems = doctor(op)
    console.print(findings, markup=False, soft_wrap=True)
    if problems:
        fail(*problems)
        raise typer.Exit(EXIT_DEFECTS)


@data.command()
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
    from dncli.data.shapes import make_shapes

    make_shapes(out, train=train, val=val, size=size, seed=seed)
    console.print(f"{out}: {train} training and {val} validation images", markup=False, soft_wrap=True)


@data.command()
def check(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="Folder of the dataset, or shapes.")] = "shapes",
    queries: Annotated[
        int | None, typer.Option(metavar="N", help="Report images with more objects than this.", show_default=False)
    ] = None,
) -> None:
    """Count a dataset and name every defect; exit code 1 if there are any.

    Example: [bold]dndetr data check COCO --queries 300[/bold]
    """
    from dncli.data.check import check_dataset, lines
    from dncli.training.report import Report

    report = check_dataset(root, queries, track=lambda images: Report().track(images, "opening images"))
    console.print("\n".join(lines(report)), markup=False, soft_wrap=True)
    if report.defects:
        raise typer.Exit(EXIT_DEFECTS)
