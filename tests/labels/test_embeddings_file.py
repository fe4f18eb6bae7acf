"""Files of class embeddings: what is read, what is refused, and a detector that goes over to other classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dndetr.console import UserError
from dndetr.data.coco import Categories
from dndetr.labels.embeddings import for_categories, read_embeddings, write_vectors
from dndetr.training.checkpoint import for_classes, load_weights
from tests.training.tiny import checkpoint, tiny_config, tiny_model

VECTORS = {"red": torch.tensor([1.0, 0.0]), "green": torch.tensor([0.0, 3.0]), "light blue": torch.tensor([-1.0, 1.0])}


@pytest.fixture
def file(tmp_path):
    write_vectors(tmp_path / "new" / "file.safetensors", VECTORS, {"model": "none"})
    return tmp_path / "new" / "file.safetensors"


def trained(names=("red", "green"), vectors=None, seed=0):
    """A model of random weights as a checkpoint."""
    vectors = torch.stack([VECTORS[name] for name in names]) if vectors is None else vectors
    model = tiny_model(tiny_config(), len(names), vectors)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return replace(checkpoint(), model=model.state_dict(), category_ids=[1, 2], category_names=list(names))


def test_rows_come_in_the_order_of_the_classes(file):
    assert read_embeddings(file, ["light blue", "red"]).tolist() == [[-1, 1], [1, 0]]
    assert load_file(file).keys() == VECTORS.keys()


def test_missing_names_are_listed_with_the_nearest(file):
    with pytest.raises(UserError) as error:
        read_embeddings(file, ["red", "gren", "zebra", "light bleu"])
    assert error.value.lines == (
        f"{file}: has no vector for 3 of the 4 classes (dndetr labels embed makes such a file):",
        "  gren, there is green",
        "  zebra",
        "  light bleu, there is light blue",
    )


def test_a_long_list_of_missing_names_is_cut(file):
    with pytest.raises(UserError) as error:
        read_embeddings(file, [f"class {i}" for i in range(30)])
    assert error.value.lines[-1] == "  ... and 20 more" and len(error.value.lines) == 12


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2), torch.ones(3), torch.tensor([1.0, float("nan")]), torch.ones(1, 2), torch.ones(2, dtype=torch.int64)],
    ids=["all 0", "longer", "not finite", "a matrix", "whole numbers"],
)
def test_what_is_no_vector_is_refused_by_name(tmp_path, wrong):
    save_file({**VECTORS, "odd one": wrong}, tmp_path / "x.safetensors")
    assert read_embeddings(tmp_path / "x.safetensors", list(VECTORS)).shape == (3, 2)
    with pytest.raises(UserError, match="x.safetensors: odd one: must be a vector of finite numbers"):
        read_embeddings(tmp_path / "x.safetensors", [*VECTORS, "odd one"])


@pytest.mark.parametrize("content", [None, b"", b"no safetensors at all"], ids=["missing", "empty", "of another kind"])
def test_files_that_cannot_be_read_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="x: cannot be read as a .safetensors file of embeddings: "):
        read_embeddings(tmp_path / "x", ["red"])


def test_without_the_package_the_way_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"pip install 'dndetr\[text\]'"):
        read_embeddings("x", ["red"])


def test_a_detector_goes_over_to_classes_that_it_never_saw(file):
    before = trained()
    after = for_categories(before, Categories((4, 8, 9), ("light blue", "green", "red")), file)
    assert (after.category_ids, after.category_names) == ([4, 8, 9], ["light blue", "green", "red"])
    model = tiny_model(tiny_config(), 3, torch.randn(3, 2)).eval()
    load_weights(model, after.weights, "after")
    old = tiny_model(tiny_config(), 2, torch.randn(2, 2)).eval()
    load_weights(old, before.weights, "before")
    state = torch.randn(5, 16)
    torch.testing.assert_close(model.heads.logits(0, state)[:, [2, 1]], old.heads.logits(0, state))
    torch.testing.assert_close(model.label.table.weight[[2, 1, 3]], old.label.table.weight)


def test_a_detector_that_learned_its_classes_goes_nowhere(file):
    with pytest.raises(UserError, match="learned its classes"):
        for_categories(checkpoint(), Categories((1,), ("red",)), file)


def test_vectors_of_another_length_are_refused(file):
    with pytest.raises(UserError, match="vectors of 2 numbers; the detector was trained with 3"):
        for_categories(trained(vectors=torch.randn(2, 3)), Categories((1,), ("red",)), file)


@pytest.mark.parametrize("names", [("red", "green"), ("light blue", "red", "green")], ids=["the same", "other classes"])
def test_a_new_training_begins_with_the_projections_of_a_checkpoint_and_its_own_vectors(names):
    before = trained()
    vectors = torch.randn(len(names), 2, generator=torch.Generator().manual_seed(5))
    model = tiny_model(tiny_config(), len(names), vectors)
    own = model.label.table.embeddings.clone()
    load_weights(model, for_classes(before, Categories(tuple(range(len(names))), names), model.state_dict()), "before")
    assert torch.equal(model.label.table.embeddings, own) and torch.equal(model.heads.cls[1].embeddings, own)
    for key in ("label.table.projection.weight", "heads.cls.0.projection.weight", "heads.cls.1.bias", "label.table.unknown"):
        assert torch.equal(model.state_dict()[key], before.model[key]), key


def test_learned_classes_do_not_begin_a_training_with_vectors():
    learned = checkpoint(model=tiny_model(tiny_config(), 2).state_dict(), category_ids=[1, 2], category_names=["red", "green"])
    model = tiny_model(tiny_config(), 3, torch.randn(3, 2))
    with pytest.raises(UserError, match="another architecture"):
        load_weights(model, for_classes(learned, Categories((1, 2, 3), ("green", "red", "x")), model.state_dict()), "learned")
