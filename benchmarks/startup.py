"""How long `dndetr --help` takes as a whole process, beside a Python that does nothing.

Both load the import hook of an editable install where there is one. It is a large part of a Python that does nothing, so that
the ratio is higher where dndetr is installed as a package.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

from compare import Contest, Functions, Row, main


def commands() -> Functions:
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    command = Path(sys.executable).with_name("dndetr")
    return {"dndetr --help": partial(run, [command, "--help"]), "python": partial(run, [sys.executable, "-c", "pass"])}


def of_children() -> float:
    """CPU time of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    rows = [Row("dndetr --help / python -c pass", "dndetr --help", "python", 12, 6)]
    main(__doc__.partition("\n")[0], [Contest([commands], rows, rounds=15, clock=of_children)])
