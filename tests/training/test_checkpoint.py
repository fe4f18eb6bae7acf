"""Checkpoints: whole or not at all, and nothing but checkpoints."""

import pickle

import pytest
import torch

from dndetr.console import UserError
from dndetr.data.coco import Categories
from dndetr.training.checkpoint import (
    categories_of,
    checkpoint_bytes,
    for_classes,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from tests.training.tiny import checkpoint, tiny_config, tiny_model


def test_it_comes_back_without_running_code(tmp_path):
    save_checkpoint(tmp_path / "last.pt", checkpoint())
    assert torch.load(tmp_path / "last.pt", weights_only=True)["category_ids"] == [3]
    again = load_checkpoint(tmp_path / "last.pt")
    torch.testing.assert_close(again.weights, {"w": torch.arange(3.0)})
    assert (again.epoch, again.best_ap, again.config) == (1, 0.5, {"train": {"lr": 1e-4}})


def test_averaged_weights_are_the_ones_to_use():
    assert checkpoint(ema={"w": torch.ones(3)}).weights["w"].tolist() == [1, 1, 1]


class Bomb:
    def __reduce__(self):
        raise OSError("No space left on device")


@pytest.mark.parametrize("moment", ["while writing", "while replacing"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint(epoch=1))
    new = checkpoint(epoch=2)
    if moment == "while writing":
        new = checkpoint(epoch=2, optimizer={"x": Bomb()})
    else:
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError):
        save_checkpoint(path, new)
    assert load_checkpoint(path).epoch == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_run_folder_means_its_best_epoch_or_the_last(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", checkpoint(epoch=4))
    assert load_checkpoint(tmp_path).epoch == 4
    save_checkpoint(tmp_path / "checkpoints" / "best.pt", checkpoint(epoch=2))
    assert load_checkpoint(tmp_path).epoch == 2
    assert load_checkpoint(tmp_path, prefer="last.pt").epoch == 4


class Foreign:
    pass


def foreign(path):
    torch.save({"model": Foreign()}, path)


def plain_pickle(path):
    path.write_bytes(pickle.dumps({"model": Foreign()}))


def cut_off(path):
    save_checkpoint(path, checkpoint())
    path.write_bytes(path.read_bytes()[:-200])


def other_weights(path):
    torch.save({"model": {"w": torch.zeros(2)}}, path)


def other_format(path):
    torch.save({**vars(checkpoint()), "format": 99}, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (foreign, "can run code"),
        (plain_pickle, "can run code"),
        (cut_off, "not a whole checkpoint"),
        (lambda path: path.write_bytes(b""), "not a whole checkpoint"),
        (lambda path: path.write_text("hello, no checkpoint here"), "not a"),
        (other_weights, "weights of other tools"),
        (other_format, "format 99"),
        (lambda path: None, "no such checkpoint"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, write, message):
    path = tmp_path / "file.pt"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert len(error.value.lines) == 1
    assert str(path) in str(error.value)


def test_another_number_of_classes_is_refused_by_name():
    config = tiny_config()
    weights = tiny_model(config, classes=5).state_dict()
    model = tiny_model(config, classes=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=r"label\.table\.weight: \(6, 15\) there, \(4, 15\) here"):
        load_weights(model, weights, "other.pt")
    torch.testing.assert_close(model.state_dict(), before)


def test_rows_of_classes_go_by_name():
    weights = {"heads.cls.0.bias": torch.arange(3.0), "label.table.weight": torch.arange(4.0)[:, None], "w": torch.ones(2)}
    old = checkpoint(model=weights, category_ids=[1, 2, 4], category_names=["cat", "dog", "cow"])
    born = {"heads.cls.0.bias": torch.full((2,), -1.0), "label.table.weight": torch.full((3, 1), -1.0), "w": torch.zeros(2)}
    moved = for_classes(old, Categories((2, 5), ("hen", "dog")), born)
    assert moved["heads.cls.0.bias"].tolist() == [-1, 1]
    assert moved["label.table.weight"][:, 0].tolist() == [-1, 1, 3]  # the unknown class stays the last
    assert moved["w"].tolist() == [1, 1]
    assert for_classes(old, Categories((1, 2, 3), ("cat", "dog", "cow")), born).items() == weights.items()
    assert weights["heads.cls.0.bias"].tolist() == [0, 1, 2] and born["heads.cls.0.bias"].tolist() == [-1, -1]


def test_rows_of_classes_of_one_name_go_by_id():
    """As Roboflow names a group like a class in it, and earlier versions kept both."""
    key, names = "heads.cls.0.bias", ["cell", "cell", "dirt"]
    old = checkpoint(model={key: torch.arange(3.0)}, category_ids=[0, 1, 2], category_names=names)
    born = {key: torch.full((3,), -1.0)}
    for ids, names, rows in (
        ((1, 2, 7), ("cell", "dirt", "hair"), [1, 2, -1]),
        ((1, 2, 7), ("cell (1)", "dirt", "cell"), [1, 2, -1]),
        ((0, 1, 2), ("cell", "cell (1)", "dirt"), [0, 1, 2]),
        ((5, 6, 7), ("cell", "x", "y"), [-1, -1, -1]),
    ):
        assert for_classes(old, Categories(ids, names), born)[key].tolist() == rows
    assert categories_of(old).names == ("cell", "cell (1)", "dirt")


def test_another_architecture_is_refused():
    with pytest.raises(UserError, match="not here"):
        load_weights(torch.nn.Linear(2, 2), {**torch.nn.Linear(2, 2).state_dict(), "extra": torch.zeros(1)}, "other.pt")


def test_the_size_of_a_checkpoint_is_not_underestimated(tmp_path):
    from dndetr.training.learner import Learner

    config = tiny_config(ema=0.9)
    model = tiny_model(config)
    learner = Learner(config, model, torch.device("cpu"), 1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    state = checkpoint(**{k: v for k, v in learner.state().items() if k != "step"})
    save_checkpoint(tmp_path / "last.pt", state)
    size = (tmp_path / "last.pt").stat().st_size
    assert size <= checkpoint_bytes(model, ema=True) <= 1.5 * size
