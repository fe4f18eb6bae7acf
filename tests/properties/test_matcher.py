"""The assignment against every assignment there is, and its independence of order and neighbours."""

from itertools import permutations
from math import log

import torch
from hypothesis import given
from hypothesis import strategies as st

from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.structures import Output, Target
from tests.properties import repeatable

CLASSES = 3
counts = st.lists(st.integers(0, 4), min_size=1, max_size=3)
weights = st.builds(MatchConfig, *[st.floats(0, 5)] * 3)
seeds = st.integers(0, 2**32)


def scene(counts: list[int], queries: int, layers: int, seed: int):
    """Predictions (L, B, N, C) and (L, B, N, 4), and as many objects an image as `counts` says."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(layers, len(counts), queries, CLASSES, generator=rng)
    boxes = torch.rand(layers, len(counts), queries, 4, generator=rng)
    targets = [
        Target(torch.randint(CLASSES, (m,), generator=rng), torch.rand(m, 4, generator=rng), image_id=i)
        for i, m in enumerate(counts)
    ]
    return logits, boxes, targets


def output(logits: torch.Tensor, boxes: torch.Tensor) -> Output:
    return Output(logits, boxes, None, QueryLayout(0, 0, boxes.shape[2]))


def cost(config: MatchConfig, logit: float, box: list[float], wanted: list[float]) -> float:
    """What a query costs for an object, in Python's doubles."""
    p = 1 / (1 + 2.718281828459045**-logit)
    focal = -0.25 * (1 - p) ** 2 * log(p + 1e-8) + 0.75 * p**2 * log(1 - p + 1e-8)
    (ax0, ax1), (ay0, ay1), (bx0, bx1), (by0, by1) = (
        (b[i] - b[i + 2] / 2, b[i] + b[i + 2] / 2) for b in (box, wanted) for i in (0, 1)
    )
    overlap = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = box[2] * box[3] + wanted[2] * wanted[3] - overlap
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    giou = overlap / (union + 1e-6) - (hull - union) / (hull + 1e-6)
    return config.cls * focal + config.box * sum(abs(a - b) for a, b in zip(box, wanted, strict=True)) - config.giou * giou


def cheapest(table: list[list[float]], queries: int) -> float:
    """The least sum over all one-to-one assignments of objects (rows) and queries."""
    if len(table) > queries:
        table, queries = [list(column) for column in zip(*table, strict=True)], len(table)
    return min(
        sum(row[q] for row, q in zip(table, chosen, strict=True)) for chosen in permutations(range(queries), len(table))
    )


@given(counts, st.integers(1, 4), st.integers(1, 2), weights, seeds)
@repeatable
def test_no_assignment_costs_less(counts, queries, layers, config, seed):
    logits, boxes, targets = scene(counts, queries, layers, seed)
    matches = Matcher(config)(output(logits, boxes), targets)
    assert len(matches) == layers
    for layer, match in enumerate(matches):
        for image, target in enumerate(targets):
            mine = match.image == image
            pairs = list(zip(match.query[mine].tolist(), match.object[mine].tolist(), strict=True))
            size = min(queries, counts[image])
            assert len(pairs) == len({q for q, _ in pairs}) == len({o for _, o in pairs}) == size
            assert all(0 <= q < queries and 0 <= o < counts[image] for q, o in pairs)
            assert [q for q, _ in pairs] == sorted(q for q, _ in pairs)
            if size:
                given_ = logits[layer, image].double(), boxes[layer, image].double().tolist(), target.boxes.double().tolist()
                table = [
                    [cost(config, float(given_[0][q, target.labels[o]]), given_[1][q], given_[2][o]) for q in range(queries)]
                    for o in range(counts[image])
                ]
                assert abs(sum(table[o][q] for q, o in pairs) - cheapest(table, queries)) < 1e-4


def pairs_of(match) -> set[tuple[int, int, int]]:
    return set(zip(match.image.tolist(), match.query.tolist(), match.object.tolist(), strict=True))


@given(counts, st.integers(1, 6), seeds, st.randoms())
@repeatable
def test_the_order_of_queries_and_of_objects_does_not_matter(counts, queries, seed, random):
    logits, boxes, targets = scene(counts, queries, 1, seed)
    order = random.sample(range(queries), queries)
    orders = [random.sample(range(m), m) for m in counts]
    shuffled = [Target(t.labels[o], t.boxes[o]) for t, o in zip(targets, orders, strict=True)]
    (before,) = Matcher(MatchConfig())(output(logits, boxes), targets)
    (after,) = Matcher(MatchConfig())(output(logits[:, :, order], boxes[:, :, order]), shuffled)
    assert {(i, order[q], orders[i][o]) for i, q, o in pairs_of(after)} == pairs_of(before)


@given(counts, st.integers(1, 6), st.integers(1, 3), seeds)
@repeatable
def test_every_image_and_layer_is_matched_by_itself(counts, queries, layers, seed):
    logits, boxes, targets = scene(counts, queries, layers, seed)
    together = Matcher(MatchConfig())(output(logits, boxes), targets)
    for layer in range(layers):
        for image, target in enumerate(targets):
            part = slice(layer, layer + 1), slice(image, image + 1)
            (alone,) = Matcher(MatchConfig())(output(logits[part], boxes[part]), [target])
            assert {(image, q, o) for _, q, o in pairs_of(alone)} == {p for p in pairs_of(together[layer]) if p[0] == image}
