"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_PRESET = "dn-deform-tiny"


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
