"""train.keep_every: checkpoints that stay, however the run ends and goes on."""

import errno

import pytest

from dndetr.console import UserError
from dndetr.training import epochs
from dndetr.training.checkpoint import load_checkpoint
from dndetr.training.loop import train
from dndetr.training.run import Run
from tests.analysis.conftest import without_pictures
from tests.training.tiny import resolved, tiny_config, with_train, write_dataset


@pytest.fixture
def config(tmp_path, monkeypatch):
    without_pictures(monkeypatch)
    return tiny_config(write_dataset(tmp_path / "data", train=4, val=2), epochs=4, drop_epoch=3, keep_every=2)


def kept(run: Run) -> list[str]:
    return sorted(file.name for file in run.last.parent.glob("epoch_*"))


def test_some_epochs_are_kept_as_they_ended(config, tmp_path):
    run = Run(train(resolved(config), tmp_path / "run"))
    assert kept(run) == ["epoch_002.pt", "epoch_004.pt"]
    assert [load_checkpoint(run.kept(epoch)).epoch for epoch in (2, 4)] == [2, 4]
    assert {*run.path.glob("matches/*")} == {run.matches(epoch) for epoch in (1, 2, 3, 4)}


def test_none_are_kept_unless_asked_for(config, tmp_path):
    assert kept(Run(train(resolved(with_train(config, keep_every=0, epochs=1)), tmp_path / "run"))) == []


def test_what_is_beyond_the_checkpoint_is_dropped_and_the_interval_may_change(config, tmp_path):
    run = Run(train(resolved(with_train(config, epochs=2)), tmp_path / "run"))
    run.kept(9).write_bytes(b"of a future that is not")
    train(resolved(with_train(config, epochs=3, keep_every=1)), None, resume=run.path)
    assert kept(run) == ["epoch_002.pt", "epoch_003.pt"]


def test_a_checkpoint_that_cannot_be_kept_leaves_a_run_to_go_on_with(config, tmp_path, monkeypatch):
    def full(path, *arguments):
        if path.name == "epoch_002.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(path, *arguments)

    save = epochs.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(epochs, "save_checkpoint", full)
        with pytest.raises(UserError, match="cannot be written: No space left on device; make room, then go on with"):
            train(resolved(config), tmp_path / "run")
    run = Run(train(resolved(config), None, resume=tmp_path / "run"))
    assert kept(run) == ["epoch_002.pt", "epoch_004.pt"]
    assert [record["epoch"] for record in run.records()] == [1, 2, 3, 4]
