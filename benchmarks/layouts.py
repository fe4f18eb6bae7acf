"""Trains on one dataset in every layout that people have it in, and shows that AP is the same to the last digit.

    benchmarks/layouts.py DATASET [KEY=VALUE ...]

DATASET is in the plain COCO layout, its images numbered from 1 in the order of their names and without crowds (formats that
number nothing are numbered so). It is rewritten into each layout as its tool writes it, and trained on with one seed by
`dndetr train --preset dn-deform-lite` with the settings given.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.data.layouts import WRITERS


def main(root: Path, settings: list[str]) -> int:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (layout, write) in enumerate(WRITERS.items()):
            where = write(root.resolve(), Path(folder) / f"data-{number}")
            run = Path(folder) / f"run-{number}"
            command = [
                sys.executable,
                "-m",
                "dndetr",
                "train",
                "--preset",
                "dn-deform-lite",
                *settings,
                *where,
                "--out",
                str(run),
            ]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[layout] = [json.loads(line)["ap"] for line in (run / "metrics.jsonl").read_text().splitlines()]
            rows = said.partition("  data  ")[2].partition("  classes")[0].splitlines()
            header = [" ".join(row.split()).replace(folder, "") for row in rows]
            print(f"{layout}: AP {found[layout]}", *(f"    {row}" for row in header), sep="\n", flush=True)
    different = len({tuple(aps) for aps in found.values()})
    print(f"{len(found)} layouts, {different} series of AP")
    return different != 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
