"""The native deformable-attention operator against grid_sample in PyTorch, as transformers computes it: time and memory.

The encoder's queries sample some pixels around themselves, as trained ones do; the decoder's anywhere. Our process keeps
freed memory as `dndetr train` does: without that half of the decoder's backward is the kernel's handing out of fresh pages.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from functools import partial

import torch
from compare import Contest, Functions, Row, extra_memory, main
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from dndetr.models import native
from dndetr.models.deformable import ms_deform_attn
from dndetr.training.distributed import keep_freed_memory

HEADS, WIDTH, POINTS, SPREAD = 8, 32, 4, 2.0  # spread: deviation of the encoder's samples, in pixels of a level
LARGE = [(100, 134), (50, 67), (25, 34), (13, 17)]  # an image of 800 x 1066
SMALL = [(16, 16), (8, 8), (4, 4), (2, 2)]  # 128 x 128


def inputs(batch: int, shapes: list[tuple[int, int]], queries: int | None) -> list[Tensor]:
    """value, locations and attention weights; without a number of queries those of the encoder, one a pixel."""
    torch.manual_seed(0)
    sizes = torch.tensor([(w, h) for h, w in shapes])
    if queries is None:
        grids = [torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy") for h, w in shapes]
        centers = torch.cat(
            [(torch.stack(grid, -1).flatten(0, 1) + 0.5) / torch.tensor(grid[0].shape[::-1]) for grid in grids]
        )
        around = SPREAD * torch.randn(batch, len(centers), HEADS, len(shapes), POINTS, 2) / sizes[:, None]
        locations = centers[None, :, None, None, None] + around
    else:
        locations = torch.rand(batch, queries, HEADS, len(shapes), POINTS, 2)
    weights = torch.rand(*locations.shape[:3], len(shapes) * POINTS).softmax(-1).view(locations.shape[:-1])
    value = torch.randn(batch, sum(h * w for h, w in shapes), HEADS, WIDTH)
    return [x.requires_grad_() for x in (value, locations, weights)]


def ours(shapes: list[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, shapes, locations, weights)


def peers(shapes: list[tuple[int, int]], value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return MultiScaleDeformableAttention()(value, None, shapes, None, locations, weights, None)


def times(who: str, batch: int, shapes: list[tuple[int, int]], queries: int | None = None) -> Functions:
    """Forward, backward and both of one side."""
    if who == "ours":
        keep_freed_memory()
    tensors, attend = inputs(batch, shapes, queries), {"ours": ours, "peer": peers}[who]
    found = attend(shapes, *tensors)
    grad = torch.ones_like(found) + 0.1
    forward, backward = partial(attend, shapes, *tensors), partial(gradients, found, tensors, grad)
    return {f"{who} F": without_grad(forward), f"{who} B": backward, f"{who} F+B": both(forward, tensors, grad)}


def sides(*call: object) -> list[Callable[[], Functions]]:
    return [partial(times, who, *call) for who in ("ours", "peer")]


def without_grad(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.no_grad()(run)


def gradients(found: Tensor, tensors: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(found, tensors, grad, retain_graph=True)


def both(forward: Callable[[], Tensor], tensors: list[Tensor], grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(forward(), tensors, grad)


def rows(what: str, lines: dict[str, tuple[float, float]]) -> list[Row]:
    return [Row(f"{what} {part}", f"ours {part}", f"peer {part}", *lines.get(part, ())) for part in ("F", "B", "F+B")]


def peak(attend: Callable[..., Tensor]) -> float:
    """MiB that a training step of the large encoder needs besides its inputs, results and gradients included."""
    torch.set_num_threads(1)
    small = inputs(1, SMALL, None)
    attend(SMALL, *small).sum().backward()  # what is loaded once is not counted
    tensors = inputs(1, LARGE, None)
    return extra_memory(lambda: attend(LARGE, *tensors).sum().backward())


if __name__ == "__main__":
    if not native.ready("cpu"):
        sys.exit(native.missing("cpu")[0])
    main(
        __doc__.partition("\n")[0],
        [
            Contest(sides(1, LARGE), rows("encoder 800x1066 N=1", {"F": (20, 40), "B": (15, 30)}), rounds=5),
            Contest(sides(2, LARGE, 500), rows("decoder 500 queries N=2", {"F+B": (5, 10)}), rounds=9),
            Contest(sides(2, SMALL), rows("encoder 128x128 N=2", {"F+B": (8, 15)}), rounds=25),
        ],
    )
    if not sys.argv[1:]:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            own, other = pool.map(peak, (ours, peers), chunksize=1)
        share = other / own
        judged = "great" if share >= 20 else "reached" if share >= 10 else "short"
        print(
            f"peak extra memory of a training step, encoder 800x1066: {own:.0f} MiB, {other:.0f} MiB, 1/{share:.1f} {judged}"
        )
