"""Row-column attention against ordinary attention in an Anchor DETR of 800 x 1066 with DC5, 50 x 67 tokens: time and memory.

The peer is the host's own `attention: plain`. In the decoder 900 queries look at the image (300 points x 3 patterns), in the
encoder the tokens do. Memory is also that of attention from single steps, which holds a weight for every query and token, as
the paper of Anchor DETR counts; PyTorch's fused attention, the peer in fp32, does not.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from functools import partial

import torch
from compare import Contest, Functions, Row, extra_memory, main

from dndetr.models import transformer
from dndetr.models.hosts.anchor_detr import AxisPlaces, PlainAttention, PointPlaces, centers
from dndetr.models.row_column import Grid, RowColumnAttention
from dndetr.training.distributed import keep_freed_memory
from dndetr.training.precision import autocast

CPU, WIDTH, HEADS = torch.device("cpu"), 256, 8
SIZE, QUERIES = (50, 67), 900
KINDS = {
    "ours": (RowColumnAttention, AxisPlaces),
    "peer": (PlainAttention, PointPlaces),
    "steps": (PlainAttention, PointPlaces),
}


def attention(kind: str, part: str, precision: str, size: tuple[int, int] = SIZE, queries: int = QUERIES) -> Functions:
    """One layer's attention, projections included: forward, and a training step of it."""
    torch.manual_seed(0)
    keep_freed_memory()
    if kind == "steps":
        transformer.slow_when_fused = lambda q, v: True
    look, places = (build(*sizes) for build, sizes in zip(KINDS[kind], ((WIDTH, HEADS), (WIDTH,)), strict=True))
    tokens = torch.randn(1, *size, WIDTH, requires_grad=True)
    with torch.no_grad():
        image = Grid(tokens, places.of_image(centers(tokens, None)), None)
        at = places.of_tokens(image) if part == "encoder" else places.of_points(torch.rand(1, queries, 2))
    x = None if part == "encoder" else torch.randn(1, queries, WIDTH, requires_grad=True)

    def forward() -> torch.Tensor:
        with autocast(precision, CPU):
            return look(tokens.flatten(1, 2) if x is None else x, at, image)

    return {f"{kind} F": torch.no_grad()(forward), f"{kind} F+B": lambda: forward().sum().backward()}


def contest(part: str, precision: str) -> Contest:
    rows = [
        Row(f"{part} {precision} {what}", f"ours {what}", f"peer {what}", *lines)
        for what, lines in {"F": (), "F+B": (1, 1.5)}.items()
    ]
    return Contest([partial(attention, kind, part, precision) for kind in ("ours", "peer")], rows, rounds=7)


def peak(kind: str, part: str, precision: str) -> float:
    """MiB that a training step of one attention needs besides its inputs, gradients included."""
    torch.set_num_threads(1)
    attention(kind, part, precision, (5, 7), 20)[f"{kind} F+B"]()  # what is loaded once is not counted
    return extra_memory(attention(kind, part, precision)[f"{kind} F+B"])


def alone(function: Callable[..., float], *call: object) -> float:
    """What a function gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, call)


if __name__ == "__main__":
    parts = [(part, precision) for part in ("decoder", "encoder") for precision in ("fp32", "bf16")]
    main(__doc__.partition("\n")[0], [contest(*part) for part in parts])
    if not sys.argv[1:]:
        print("peak extra memory of a training step, MiB: ours, plain, plain in single steps; the last as a multiple of ours")
        for part in parts:
            ours, peer, steps = (alone(peak, kind, *part) for kind in KINDS)
            judged = "great" if steps >= 6 * ours else "reached" if steps >= 3 * ours else "short"
            print(f"{' '.join(part)}: {ours:.0f}, {peer:.0f}, {steps:.0f}; {steps / ours:.1f} >= 3 (6) {judged}", flush=True)
