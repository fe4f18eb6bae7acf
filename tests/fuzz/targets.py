"""What is fuzzed: a file's bytes go in, and only what the caller was promised may come out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from dndetr.console import UserError
from dndetr.data.annotations import Annotations
from dndetr.data.coco import Categories, pack
from dndetr.data.formats.coco import coco_at
from dndetr.data.store import Folder
from dndetr.resolve import Resolved, from_tree, load_preset, to_yaml

OVERRIDE = "#! "  # a preset's line that begins so is a comment to YAML, and to this target an override: #! train.lr=1


def annotations(data: bytes) -> None:
    """The reader of COCO files reports every defect in words that can be printed, and what it keeps can be trained on."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "annotations.json")
        file.write_bytes(data)
        found = coco_at(Folder(Path(folder)), "annotations.json", "").annotations()
        for defect in found.defects:
            assert str(defect).isprintable(), "a terminal cannot show this on one line"
        check_objects(found)


def check_objects(found: Annotations) -> None:
    """Every object is of a known class and a box within its image."""
    names = found.categories
    split = pack(found, "train", Categories(tuple(sorted(names)), tuple(names[i] for i in sorted(names))))
    assert len(split.labels) == len(split.boxes) == sum(last - first for first, last in split.spans.values())
    assert all(0 <= label < len(names) for label in split.labels.tolist())
    assert split.boxes.isfinite().all() and ((split.boxes >= 0) & (split.boxes <= 1)).all()
    assert (split.boxes[:, 2:] > 0).all(), "a box without extent"


def presets(data: bytes) -> None:
    """load_preset gives settings that can be written and read again, or mistakes of one printable line each."""
    # as Python decodes the arguments of a command
    overrides = [
        line.removeprefix(OVERRIDE) for line in data.decode(errors="surrogateescape").splitlines() if OVERRIDE in line
    ]
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # what is extended by a relative path lies here
        try:
            Path("preset.yaml").write_bytes(data)
            check_settings(load_preset("preset.yaml", overrides))
        except UserError as error:
            assert error.lines
            assert all(line.isprintable() for line in error.lines), "a terminal cannot show this on one line"
        finally:
            os.chdir(before)


def check_settings(resolved: Resolved) -> None:
    assert from_tree(resolved.tree) == resolved.config
    Path("again.yaml").write_text(to_yaml(resolved), encoding="utf-8")
    assert load_preset("again.yaml").config == resolved.config


TARGETS: dict[str, Callable[[bytes], None]] = {"annotations": annotations, "presets": presets}
