"""Studies that are small, and runs that were never trained."""

from __future__ import annotations

import json
from pathlib import Path

from dndetr.ablation.runs import Trial
from dndetr.resolve import to_tree
from dndetr.settings import dump
from tests.training.tiny import tiny_config

ROWS = """
preset: {preset}
base: [noise.groups=1]
rows:
  - {{name: With noise, paper: 44.0}}
  - {{name: none, set: [noise=null], paper: 42.0}}
"""


def write_preset(folder: Path, root: str | Path = "nowhere", **train) -> Path:
    """A preset that is trained in no time, once there is data at `root`."""
    path = folder / "tiny.yaml"
    path.write_text(dump(to_tree(tiny_config(root, **train))))
    return path


def write_study(folder: Path, text: str = ROWS, **values) -> str:
    path = folder / "mine.yaml"
    path.write_text(text.format(preset=folder / "tiny.yaml", **values) if text is ROWS else text)
    return str(path)


def fake(trial: Trial, aps: list[float | None], instability: float | None = 1.0) -> None:
    """A run folder as if so many epochs had been trained and saved."""
    (trial.folder / "checkpoints").mkdir(parents=True)
    (trial.folder / "config.yaml").write_text(dump(trial.resolved.tree))
    lines = [record(epoch, ap, instability) for epoch, ap in enumerate(aps, 1)]
    (trial.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (trial.folder / "checkpoints" / "last.pt").touch()


def record(epoch: int, ap: float | None, instability: float | None) -> dict:
    return {"epoch": epoch, "ap": ap, "ap50": ap, "seconds": 30.0, "instability": None if epoch == 1 else instability}
