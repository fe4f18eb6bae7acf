"""Checkpoints that are damaged, foreign or gone: told from whole ones, and what is whole beside them is named."""

import errno
import json
import os
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dndetr.console import UserError
from dndetr.resolve import from_tree
from dndetr.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from dndetr.training.loop import train
from dndetr.training.values import save_values
from tests.training.tiny import checkpoint, resolved, tiny_config, write_dataset


@pytest.fixture
def beside(tmp_path):
    """A damaged last.pt is to be written; previous.pt, and an older best.pt, are whole."""
    for i, name in enumerate(("best.pt", "previous.pt")):
        save_checkpoint(tmp_path / name, checkpoint(epoch=i + 1))
        os.utime(tmp_path / name, (1000 + i, 1000 + i))
    return tmp_path


def real_checkpoint() -> Checkpoint:
    """With an optimiser's moments and averaged weights, as a training writes it, but only a few kB of each."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    state = dict(model.state_dict())
    return checkpoint(model=state, ema=state, optimizer=optimizer.state_dict(), begun={"names": ["loss"], "sums": [None]})


def refused(path, content: bytes) -> str:
    """The sentence about such a file, which must name previous.pt."""
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert len(error.value.lines) == 1
    assert str(error.value).endswith(f"; the last whole one is {path.parent / 'previous.pt'}")
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def test_every_flipped_bit_is_found(beside):
    """300 bits anywhere, one in every byte of the zip's end and the digest behind it, and one in the first bytes."""
    path = beside / "last.pt"
    save_checkpoint(path, real_checkpoint())
    content = path.read_bytes()
    rng = random.Random(0)
    bits = rng.sample(range(8 * len(content)), 300)
    bits += [8 * byte + rng.randrange(8) for byte in [*range(64), *range(len(content) - 200, len(content))]]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(path, bytes(flipped))
    path.write_bytes(content)
    assert load_checkpoint(path).begun == {"names": ["loss"], "sums": [None]}


def test_every_other_damage_is_found(beside):
    path = beside / "last.pt"
    save_checkpoint(path, real_checkpoint())
    content = path.read_bytes()
    ends = [*range(10), *range(len(content) - 120, len(content)), *range(10, len(content), len(content) // 50)]
    for end in ends:
        refused(path, content[:end])
    middle = len(content) // 2
    other = content[:middle] + bytes(512) + content[middle + 512 :]  # a block that never reached the disk
    assert "its content is not what was written" in refused(path, other)
    assert "its content is not what was written" in refused(path, content[:middle] + b"x" + content[middle:])
    refused(path, content + b"x")
    refused(path, bytes(len(content)))


@pytest.mark.parametrize("trust", [False, True])
def test_trust_does_not_open_what_is_damaged(beside, trust):
    path = beside / "last.pt"
    save_checkpoint(path, real_checkpoint())
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (bytes(flipped), content[: len(content) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="; the last whole one is .*previous.pt$"):
            load_checkpoint(path, trust=trust)


def test_of_the_checkpoints_beside_it_the_first_whole_one_is_named(beside):
    (beside / "last.pt").write_bytes(b"")
    (beside / "previous.pt").write_bytes(b"")
    with pytest.raises(UserError, match="; the last whole one is .*best.pt$"):
        load_checkpoint(beside / "last.pt")
    (beside / "best.pt").write_bytes((beside / "best.pt").read_bytes()[:-1])
    with pytest.raises(UserError, match="another kind of file\\)$"):
        load_checkpoint(beside / "last.pt")


def test_a_run_without_its_last_checkpoint_names_the_previous_one(beside):
    folder = beside / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (beside / "previous.pt").rename(folder / "previous.pt")
    with pytest.raises(UserError, match="no checkpoint in this folder .*previous.pt$"):
        load_checkpoint(beside / "run", prefer="last.pt")


def test_a_checkpoint_that_another_program_saved_again_needs_trust(beside):
    path = beside / "last.pt"
    save_checkpoint(path, real_checkpoint())
    torch.save(torch.load(path, weights_only=True), path)
    assert "has no SHA-256 at its end" in refused(path, path.read_bytes())
    assert load_checkpoint(path, trust=True).epoch == 1


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["zip", "zip with the digest", "pickle", "inside a checkpoint"])
def test_code_in_a_file_runs_only_with_trust(tmp_path, kind):
    path, marker = tmp_path / "last.pt", tmp_path / "ran"
    values = {"model": Marker(marker)}
    if kind == "zip":
        torch.save(values, path)
    elif kind == "zip with the digest":
        save_values(path, values)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(values))
    else:
        save_checkpoint(path, checkpoint(begun={"x": Marker(marker)}))
    with pytest.raises(UserError, match="opening that can run code; --trust-pickle opens it") as error:
        load_checkpoint(path)
    assert len(error.value.lines) == 1
    assert not marker.exists()
    if kind == "inside a checkpoint":
        assert load_checkpoint(path, trust=True).epoch == 1
    elif kind != "pickle":  # which torch.load does not open without its own frame
        with pytest.raises(UserError, match="not a dndetr checkpoint"):
            load_checkpoint(path, trust=True)
    assert marker.exists() or kind == "pickle"


def test_one_that_cannot_be_read_is_no_traceback(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        load_checkpoint(tmp_path / "folder.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "link.pt")


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, monkeypatch):
    """And a copy that fails half-way takes no room, and leaves the two checkpoints that were there."""

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    def full(source, target):
        Path(target).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", refuse)
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for epoch in (1, 2, 3):
        save_checkpoint(last, checkpoint(epoch=epoch), previous)
    assert (load_checkpoint(last).epoch, load_checkpoint(previous).epoch) == (3, 2)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(last, checkpoint(epoch=4), previous)
    assert (load_checkpoint(last).epoch, load_checkpoint(previous).epoch) == (3, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


# damage, as a run meets it


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    return train(resolved(tiny_config(write_dataset(folder / "data"))), folder / "run")


def test_a_run_goes_on_from_the_checkpoint_that_the_message_names(run, tmp_path):
    """It ends with the bits of the run that had no damage, and the damaged file has not become the previous one."""
    shutil.copytree(run, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    config = from_tree(load_checkpoint(last).config, "last.pt")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    last.with_name("best.pt").unlink()
    with pytest.raises(UserError) as error:
        train(resolved(config), None, resume=tmp_path / "run")
    named = str(error.value).partition("the last whole one is ")[2]
    assert named == str(last.with_name("previous.pt"))
    assert (load_checkpoint(named).epoch, load_checkpoint(named).step) == (1, 4)  # saved before the last evaluation
    train(resolved(config), None, resume=named)
    ours, theirs = (load_checkpoint(folder, prefer="last.pt") for folder in (tmp_path / "run", run))
    for part in ("model", "optimizer"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=0, atol=0)
    assert load_checkpoint(last.with_name("previous.pt")).epoch >= 1


def test_a_checkpoint_of_another_architecture_names_the_previous_one(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    good = load_checkpoint(last)
    fewer = {key: value for key, value in good.model.items() if not key.startswith("encoder.")}
    save_checkpoint(last, replace(good, model=fewer, epoch=1))
    with pytest.raises(UserError) as error:
        train(resolved(from_tree(good.config, "last.pt")), None, resume=tmp_path / "run")
    assert "weights of another architecture" in error.value.lines[0]
    assert "previous.pt" in str(error.value)
    assert load_checkpoint(last).epoch == 1  # untouched


def test_the_command_opens_foreign_checkpoints_only_with_trust(run, main, tmp_path):
    path, marker = tmp_path / "foreign.pt", tmp_path / "ran"
    values = vars(load_checkpoint(run))
    torch.save(values | {"begun": {"x": Marker(marker)}}, path)
    command = ("eval", "--ckpt", path, "--json", tmp_path / "found.json", "data.workers=0")
    done = main(*command)
    assert (done.code, done.err.count("\n"), marker.exists()) == (2, 1, False)
    assert "--trust-pickle" in done.err
    done = main(*command, "--trust-pickle")
    assert (done.code, done.err, marker.exists()) == (0, "", True)
    assert json.loads((tmp_path / "found.json").read_text())["epoch"] == values["epoch"]
