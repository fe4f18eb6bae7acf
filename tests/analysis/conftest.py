"""Two finished runs, with denoising and without, and the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dndetr.training import epochs
from dndetr.training.loop import train
from tests.training.tiny import resolved, tiny_config, write_dataset


@pytest.fixture(scope="package")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """`dn`, three epochs with a checkpoint of each, and `baseline`, two epochs. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny_config(write_dataset(folder / "data"), epochs=3, drop_epoch=3, lr=0.05, keep_every=1, ema=0.5)
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        train(resolved(config), folder / "dn")
        train(resolved(replace(config, noise=None, train=replace(config.train, epochs=2, keep_every=0))), folder / "baseline")
    return folder / "dn", folder / "baseline"


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Trainings draw most of the time where there is so little to train."""
    for name in ("plot_run", "draw_samples"):
        patch.setattr(epochs, name, lambda *arguments: None)
