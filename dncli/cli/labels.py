"""`dndetr labels`: vectors of class names, and which classes an image has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dndetr.cli.options import Checkpoint, Overrides, TrustPickle
from dndetr.console import UserError, say

app = typer.Typer(no_args_is_help=True, help="Embed the names of classes, or find out which classes an image has.")


@app.command()
def embed(
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new .safetensors file, for labels.embeddings.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Class names.", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option(metavar="ROOT", help="Take the classes of this dataset, or of shapes.", show_default=False)
    ] = None,
) -> None:
    """Turn class names into vectors with a small language model, offline (all-MiniLM-L6-v2, 384 numbers a name).

    Example: [bold]dndetr labels embed --out shapes.safetensors --data shapes[/bold]
    """
    if out.exists():
        raise UserError(f"{out}: exists; give a new file with --out")
    if not names and data is None:
        raise UserError("nothing to embed: give class names, or a dataset with --data")
    from dndetr.labels.embeddings import write_vectors
    from dndetr.labels.text import MODEL, class_names, embed_names

    vectors = embed_names([*(class_names(data) if data else ()), *(names or ())])
    write_vectors(out, vectors, {"model": MODEL})
    say(f"{out}: {len(vectors)} classes; train with: labels.embeddings={out}")


@app.command()
def classify(
    ckpt: Checkpoint,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new JSON file: the probability of each class, by image.")],
    overrides: Overrides = None,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the training images' features.")] = 20,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the head's first weights and the order of images.")] = 0,
    trust: TrustPickle = False,
) -> None:
    """Train a small classifier on a detector's frozen backbone, and say which classes each validation image has.

    Example: [bold]dndetr labels classify --ckpt runs/dn-deform-tiny --out labels.json[/bold]
    """
    from dndetr.labels.classify import classify

    classify(ckpt, out, overrides or [], epochs=epochs, seed=seed, trust=trust)
