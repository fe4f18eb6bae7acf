"""Instability (Eq. 2) of matches made by hand."""

import numpy as np
import pytest

from dncli.analysis import Matches, instability


def matches(ids, rows):
    return Matches(np.array(ids), np.array(rows, dtype=np.int32))


def test_it_counts_changed_queries_averaged_over_images():
    before = matches([7, 9], [[0, 1, -1, -1], [-1, 0, -1, -1]])
    after = matches([7, 9], [[1, 0, -1, 2], [-1, 0, -1, -1]])
    assert instability(before, after) == 1.5  # three queries of image 7, none of image 9
    assert instability(before, before) == 0


def test_an_object_that_moves_to_another_query_counts_twice():
    assert instability(matches([1], [[0, -1]]), matches([1], [[-1, 0]])) == 2


@pytest.mark.parametrize("after", [matches([2], [[0, -1]]), matches([1], [[0, -1, -1]]), matches([1, 2], [[0, -1]] * 2)])
def test_other_images_or_queries_are_refused(after):
    with pytest.raises(ValueError, match="same images"):
        instability(matches([1], [[0, -1]]), after)
