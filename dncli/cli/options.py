"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_PRESET = "dn-deform-tiny"


def preset_names(incomplete: str) -> list[str]:
    from dndetr.resolve import FOLDER

    return sorted(path.stem for path in FOLDER.glob(f"{incomplete}*.yaml"))


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings on top, such as train.lr=2e-4 or noise=null.", show_default=False),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Open a checkpoint that can run code: only of people whom you trust.")
]
Checkpoint = Annotated[Path, typer.Option("--ckpt", metavar="RUN|FILE", help="A run folder (its best epoch) or a .pt file.")]
Progressive = Annotated[
    int, typer.Option(min=0, metavar="ROUNDS", help="Tell the detector what it found with confidence, so many times.")
]
Sure = Annotated[float, typer.Option(min=0, max=1, help="Score from which --progressive tells a detection.")]
