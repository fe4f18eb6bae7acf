"""Instability (Eq. 2) of matches made by hand, and the file that keeps them."""

import numpy as np
import pytest

from dndetr.analysis.instability import (
    Matches,
    difference,
    instability,
    largest_instability,
    layer_instability,
    load_matches,
    save_matches,
)
from dndetr.console import UserError


def matches(ids, *layers):
    every = np.array(layers, dtype=np.int32)
    return Matches(np.array(ids), every[-1], every)


def test_it_counts_changed_queries_averaged_over_images():
    before = matches([7, 9], [[0, 1, -1, -1], [-1, 0, -1, -1]])
    after = matches([7, 9], [[1, -1, -1, 0], [-1, 0, -1, -1]])
    assert instability(before, after) == 1.5  # three queries of image 7, none of image 9
    assert instability(before, before) == 0


def test_an_object_that_moves_to_another_query_counts_twice():
    assert instability(matches([1], [[0, -1]]), matches([1], [[-1, 0]])) == 2


def test_each_decoder_layer_is_compared_with_itself():
    before = matches([1, 2], [[0, -1], [0, -1]], [[0, -1], [0, -1]], [[0, -1], [0, -1]])
    after = matches([1, 2], [[-1, 0], [-1, 0]], [[0, -1], [-1, 0]], [[0, -1], [0, -1]])
    assert layer_instability(before, after).tolist() == [2, 1, 0]
    assert instability(before, after) == 0  # the last layer


def test_layers_that_were_not_kept_are_refused():
    before = matches([1], [[0, -1]])
    with pytest.raises(ValueError, match="decoder layers"):
        layer_instability(before, before._replace(layers=None))


def test_the_largest_value_is_twice_the_objects_and_is_reached():
    before = matches([1, 2], [[0, 1, -1, -1], [0, -1, -1, -1]])
    after = matches([1, 2], [[-1, -1, 0, 1], [-1, -1, -1, 0]])
    assert largest_instability(before) == instability(before, after) == 3


def test_where_queries_are_few_all_of_them_can_change():
    before, after = matches([1], [[0, 1, -1]]), matches([1], [[1, -1, 0]])
    assert largest_instability(before) == instability(before, after) == 3


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (matches([2], [[0, -1]]), "the images"),
        (matches([1, 2], [[0, -1]] * 2), "the images"),
        (matches([1], [[0, -1, -1]]), "the number of queries"),
        (matches([1], [[0, 1]]), "the objects of the images"),
    ],
)
def test_other_images_queries_or_objects_are_refused(after, what):
    before = matches([1], [[0, -1]])
    assert difference(before, after) == what
    with pytest.raises(ValueError, match=f"same images.*{what} differ"):
        instability(before, after)


def test_a_file_of_matches_comes_back_as_it_was(tmp_path):
    file, kept = tmp_path / "epoch_001.npz", matches([3, 1], [[0, -1], [-1, 0]], [[-1, 0], [-1, 0]])
    for each in (kept, kept._replace(layers=None)):
        save_matches(file, each)
        back = load_matches(file)
        assert (back.layers is None) == (each.layers is None)
        np.testing.assert_equal(back._asdict(), each._asdict())


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / "epoch_001.npz"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"epoch_001.npz: cannot be read as the matches of an epoch"):
        load_matches(file)
