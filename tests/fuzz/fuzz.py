"""Coverage-guided fuzzing with atheris: `python tests/fuzz/fuzz.py annotations|presets [options of libFuzzer]`.

New inputs gather in a folder that is thrown away; the first argument that is a folder keeps them instead. A case that fails
is written to the folder of `-artifact_prefix`, here the working folder: mend the code and add the file to `corpus/`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

# Everything is slower when it is watched: only what reads the input is.
with atheris.instrument_imports(include=["yaml", "json", "dndetr.data.annotations", "dndetr.resolve", "dndetr.settings"]):
    import dndetr.data.annotations
    import dndetr.resolve
    import dndetr.settings
with atheris.instrument_imports(include=["dndetr.schema"]):
    import dndetr.schema  # noqa: F401

from tests.fuzz.targets import TARGETS  # noqa: E402


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz.py {'|'.join(TARGETS)} [options of libFuzzer] [folders]")
    name, *options = sys.argv[1:]
    words = f"-dict={HERE / f'{name}.dict'}"
    with tempfile.TemporaryDirectory() as found:
        atheris.Setup([sys.argv[0], words, *options, found, str(HERE / "corpus" / name)], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
