"""The run folder: refused where it would cost something, and found unwritable before the first epoch."""

import csv
import errno
import json

import numpy as np
import pytest
import torch
import yaml

from dndetr.analysis.instability import Matches
from dndetr.console import UserError
from dndetr.training.run import Run, check_free, create_run, reopen_run
from tests.training.tiny import checkpoint

TREE = {"train": {"lr": 1e-4}}
FIRST = checkpoint()


def test_a_new_run_has_its_settings_and_environment(tmp_path):
    run = create_run(tmp_path / "a" / "run", TREE, FIRST, room=100, overwrite=False)
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == TREE
    environment = json.loads((run.path / "env.json").read_text())
    assert {"command", "versions", "platform", "git_commit"} <= environment.keys()
    assert sorted(p.name for p in run.path.iterdir() if p.is_dir()) == [
        "checkpoints",
        "eval",
        "matches",
        "plots",
        "predictions",
    ]
    assert not list(tmp_path.rglob(".dndetr-probe*"))


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=False)
    with pytest.raises(UserError, match="--resume .* or replace it with --overwrite"):
        create_run(tmp_path / "run", {}, FIRST, room=1, overwrite=False)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == TREE


def test_overwriting_replaces_a_run_and_nothing_else(tmp_path):
    run = create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=False)
    run.record({"epoch": 1})
    create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=True)
    assert run.records() == []
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="does not look like a run"):
        create_run(tmp_path / "home", TREE, FIRST, room=1, overwrite=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        check_free(tmp_path / "run", overwrite=True)


def full_disk(monkeypatch):
    """Files hold 3 MiB and no more."""
    import builtins

    opened = builtins.open

    def limited(path, *args, **kwargs):
        file = opened(path, *args, **kwargs)
        if ".dndetr-probe" in str(path):
            write = file.write

            class Full:
                written = 0

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def write(self, block):
                    self.written += len(block)
                    if self.written > 3 * 2**20:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return write(block)

            return Full()
        return file

    monkeypatch.setattr(builtins, "open", limited)


def test_a_full_disk_is_found_before_the_old_run_is_removed(tmp_path, monkeypatch):
    run = create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=False)
    run.record({"epoch": 1})
    full_disk(monkeypatch)
    with pytest.raises(UserError, match=r"cannot hold the run's checkpoints \(4 MiB\): No space left"):
        create_run(tmp_path / "run", TREE, FIRST, room=2**22, overwrite=True)
    assert run.records() == [{"epoch": 1}]
    assert not list(tmp_path.rglob(".dndetr-probe*"))
    create_run(tmp_path / "small", TREE, FIRST, room=2**21, overwrite=False)


def test_a_full_disk_is_found_before_going_on(tmp_path, monkeypatch):
    run = create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=False)
    full_disk(monkeypatch)
    with pytest.raises(UserError, match="cannot hold the run's checkpoints"):
        reopen_run(run.path, TREE, FIRST, room=2**25)


def test_a_read_only_place_is_refused(tmp_path, monkeypatch):
    """Where nothing can be written, the probe can neither be made nor removed."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(UserError, match="cannot hold the run's checkpoints .*: Read-only file system"):
        create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=False)


def test_an_unwritable_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written|cannot hold"):
        create_run(tmp_path / "file" / "run", TREE, FIRST, room=1, overwrite=False)


def test_metrics_are_kept_as_lines_and_as_a_table(tmp_path):
    run = create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=False)
    run.record({"epoch": 1, "loss": 2.5, "ap": None})
    run.record({"epoch": 2, "loss": 1.5, "ap": 0.25})
    assert [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()] == [1, 2]
    with open(run.path / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"epoch": "1", "loss": "2.5", "ap": ""},
            {"epoch": "2", "loss": "1.5", "ap": "0.25"},
        ]


def test_resuming_drops_what_belongs_to_no_checkpoint(tmp_path):
    run = create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=False)
    for epoch in (1, 2, 3):
        run.record({"epoch": epoch})
        run.save_matches(epoch, Matches(np.array([1]), np.array([[epoch]], dtype=np.int32)))
    reopen_run(run.path, TREE, checkpoint(epoch=2), room=1)
    assert [record["epoch"] for record in run.records()] == [1, 2]
    assert run.previous_matches(3).matched.tolist() == [[2]]
    assert not run.matches(3).exists()
    assert Run(run.path).previous_matches(1) is None


def test_what_could_not_be_written_leaves_the_old_text_and_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = create_run(tmp_path / "run", TREE, FIRST, room=1, overwrite=False)
    run.record({"epoch": 1})
    before = sorted(run.path.rglob("*"))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device; make room, then go on"), run.writing():
        run.record({"epoch": 2})
    assert run.records() == [{"epoch": 1}]
    assert sorted(run.path.rglob("*")) == before


def test_room_that_the_run_has_already_is_not_asked_for_again(tmp_path, monkeypatch):
    """Of four checkpoints at once it may have three; two names of one file are one of them."""
    asked = []
    monkeypatch.setattr("dndetr.training.run.probe", lambda folder, room: asked.append(room))
    big = checkpoint(model={"w": torch.zeros(2**18)})
    run = create_run(tmp_path / "run", TREE, big, room=1, overwrite=False)
    size = run.last.stat().st_size
    reopen_run(run.path, TREE, big, room=4 * size)
    run.previous.hardlink_to(run.last)
    reopen_run(run.path, TREE, big, room=4 * size)
    for name in ("previous.pt", "best.pt", "other.pt", "another.pt"):
        run.last.with_name(name).unlink(missing_ok=True)
        run.last.with_name(name).write_bytes(run.last.read_bytes())
    reopen_run(run.path, TREE, big, room=4 * size)
    assert asked == [1, 3 * size, 3 * size, size]
