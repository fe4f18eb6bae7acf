"""Datasets and the command, which several tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small generated dataset: 24 training and 8 validation images of 64 x 64. Not to be changed."""
    from dndetr.data.shapes import make_shapes

    root = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(root, train=24, val=8, size=64, seed=3)
    return root


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """The root of a real dataset by name, bccd or coco-open; skips where it is not there."""

    def find(name: str) -> Path:
        if not (REAL / name).is_dir():
            pytest.skip(f"no {name} in {REAL}")
        return REAL / name

    return find


class Done(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def main(monkeypatch, capsys) -> Callable[..., Done]:
    """The command in this process: `main("eval", "--ckpt", path)`."""
    from dndetr import cli

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["dndetr", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Done(stop.value.code, *capsys.readouterr())

    return call
