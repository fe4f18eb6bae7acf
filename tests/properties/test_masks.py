"""Who learns of whom in a decoder: what one layer lets through, and what arrives after any number of layers."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.denoising.queries import Queries
from dndetr.models.structures import Apart
from dndetr.models.transformer import attend
from tests.properties import repeatable

layouts = st.builds(QueryLayout, st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.booleans())


@st.composite
def queries(draw, isolated: bool | None = None) -> Queries:
    """The queries of two images, some of their slots empty."""
    layout = draw(layouts if isolated is None else layouts.filter(lambda layout: layout.isolated == isolated))
    empty = draw(st.lists(st.booleans(), min_size=2 * layout.denoising, max_size=2 * layout.denoising))
    padding = torch.zeros(2, layout.width, dtype=torch.bool)
    padding[:, : layout.denoising] = torch.tensor(empty).view(2, -1)
    return Queries(torch.zeros(2, layout.width, 1), torch.zeros(2, layout.width, 4), layout, padding)


def sources(blocked: torch.Tensor) -> torch.Tensor:
    """(W, W) bool: whether anything of query j arrives at query i after many layers."""
    reach = ~blocked | torch.eye(len(blocked), dtype=torch.bool)
    for _ in range(len(blocked).bit_length()):
        reach = (reach.float() @ reach.float()) > 0
    return reach


@given(queries(isolated=True))
@repeatable
def test_matching_never_learns_of_denoising_and_no_group_of_another(queries):
    layout = queries.layout
    groups = torch.arange(layout.denoising) // layout.slots
    for blocked in queries.blocked():
        denoising, matching = layout.split(sources(blocked), dim=0)
        assert not layout.split(matching, dim=1)[0].any()
        assert not layout.split(denoising, dim=1)[0][groups[:, None] != groups].any()


@given(queries())
@repeatable
def test_matching_is_seen_by_all_and_empty_slots_by_none(queries):
    for blocked, padding in zip(queries.blocked(), queries.padding, strict=True):
        assert not queries.layout.split(blocked, dim=1)[1].any()
        assert blocked[:, padding].all()
        assert not blocked.all(dim=1).any()  # a softmax over nothing is not a number


@given(queries(isolated=True))
@repeatable
def test_full_slots_of_a_group_see_each_other(queries):
    layout = queries.layout
    for blocked, padding in zip(queries.blocked(), queries.padding, strict=True):
        for p in range(layout.groups):
            group = torch.arange(p * layout.slots, (p + 1) * layout.slots)
            full = group[~padding[group]]
            assert not blocked[full[:, None], full].any()


@given(queries(isolated=False))
@repeatable
def test_without_isolation_only_empty_slots_are_hidden(queries):
    assert torch.equal(queries.blocked(), queries.padding[:, None, :].expand_as(queries.blocked()))


@st.composite
def grouped(draw) -> Queries:
    """Queries of two images with several groups of matching queries, with denoising queries or without."""
    groups, size, isolated = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.booleans())
    p, m = draw(st.sampled_from([(0, 0), (1, 2), (3, 1)]))
    layout = QueryLayout(p, m, groups * size, isolated, groups)
    padding = torch.zeros(2, layout.width, dtype=torch.bool)
    padding[:, : p * m] = torch.tensor(draw(st.lists(st.booleans(), min_size=2 * p * m, max_size=2 * p * m))).view(2, -1)
    by_image = draw(st.sampled_from([None, torch.tensor([True, False])])) if isolated and p else None
    return Queries(torch.zeros(2, layout.width, 1), torch.zeros(2, layout.width, 4), layout, padding if p else None, by_image)


@given(grouped())
@repeatable
def test_groups_in_the_batch_find_what_they_find_behind_a_mask(queries):
    layout, blocked = queries.layout, queries.blocked()
    assert isinstance(blocked, Apart) == (layout.isolated and queries.isolated is None)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, layout.width, 6)
    torch.testing.assert_close(attend(q, k, v, 2, blocked), attend(q, k, v, 2, queries.mask(layout)))


@given(layouts, st.integers(0, 3))
@repeatable
def test_the_parts_of_the_queries_are_the_queries(layout, extra):
    x = torch.arange(layout.width * (extra + 1)).view(layout.width, extra + 1)
    denoising, matching = layout.split(x, dim=0)
    assert torch.equal(torch.cat((denoising, matching)), x) and len(matching) == layout.queries
