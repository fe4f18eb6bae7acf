"""Prints the lower bounds of pyproject.toml as constraints for pip: what `make lowest` installs and tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(requirement: str) -> str:
    """`name>=1.2` as `name==1.2`. Raises ValueError for one without a lower bound."""
    if not re.fullmatch(r"[\w-]+[>=]=[\w.]+", requirement):
        raise ValueError(f"{PYPROJECT}: {requirement!r} is neither name>=version nor name==version")
    return requirement.replace(">=", "==")


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    for requirements in (project["dependencies"], *project["optional-dependencies"].values()):
        print(*map(lowest, requirements), sep="\n")
