"""Two stages (Deformable DETR, DINO): every token of the encoder proposes a box, and the decoder starts from the best.

Deformable DETR only asks a token whether there is an object at all, and teaches all tokens so; DINO asks for the class, and
teaches the proposals that it takes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dndetr.models.deformable import Pyramid, token_centers
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.heads import DetectionHeads
from dndetr.models.linear import Linear
from dndetr.models.structures import Output
from dndetr.models.transformer import init_xavier


class Proposals(nn.Module):
    """The N best boxes of an image, whatever its padding: where it has fewer tokens, boxes of no place fill up."""

    def __init__(
        self, width: int, num_classes: int, queries: int, *, agnostic: bool = False, embeddings: Tensor | None = None
    ):
        """`agnostic`: the first class stands for any object. No vector tells that, so with `embeddings` it is the only one."""
        super().__init__()
        self.project, self.norm = Linear(width, width), nn.LayerNorm(width)
        init_xavier(self.project)
        if agnostic and embeddings is not None:
            num_classes, embeddings = 1, None
        self.heads = DetectionHeads(width, num_classes, 1, shared=True, embeddings=embeddings)
        self.queries, self.agnostic = queries, agnostic

    def forward(self, memory: Tensor, image: Pyramid) -> tuple[Tensor, Output]:
        """Memory (B, S, D) to the logits of the best boxes (B, N, 4), without gradient, and what the encoder is taught by."""
        places, possible = token_boxes(image)
        if (short := self.queries - memory.shape[1]) > 0:
            memory, places, possible = (F.pad(x, (0, 0, 0, short)) for x in (memory, places, possible))
        x = self.norm(self.project(memory.masked_fill(~possible, 0)))
        logits = hidden(self.heads.logits(0, x), possible)  # B S C
        boxes = self.heads.box[0](x).float() + places.masked_fill(~possible, torch.inf)  # B S 4
        scores = logits[..., 0] if self.agnostic else logits.amax(-1)
        # Sorted, not by torch.topk: of equal ones the first, wherever the padding lies between them.
        best = scores.float().sort(dim=1, descending=True, stable=True).indices[:, : self.queries, None]  # B N 1
        chosen = boxes.gather(1, best.expand(-1, -1, 4))
        if not self.agnostic:
            logits, boxes = logits.gather(1, best.expand(-1, -1, logits.shape[-1])), chosen
        layout = QueryLayout(groups=0, slots=0, queries=boxes.shape[1])
        taught = Output(logits[None], boxes.sigmoid()[None], None, layout, agnostic=self.agnostic)
        return chosen.detach(), taught


def token_boxes(image: Pyramid) -> tuple[Tensor, Tensor]:
    """The box at each token as logits (B, S, 4), and whether there can be one (B, S, 1).

    A box lies around its pixel's centre and has a twentieth of the image's sides in the finest level, twice that in each next.
    There is none under the padding and none with a centre or a size outside of (0.01, 0.99), which is too close to a border.
    """
    boxes = torch.cat(
        [torch.cat((xy, torch.full_like(xy, 0.05 * 2**level)), dim=-1) for level, xy in enumerate(token_centers(image))], dim=1
    )
    possible = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)  # in the padding a centre is above 1
    return boxes.where(possible, 0.5).logit(), possible


NOTHING = -100.0  # p = e^-100: no token has a lower score, and in float32 there is no loss and no gradient


def hidden(logits: Tensor, possible: Tensor) -> Tensor:
    """Logits (B, S, C) that say "nothing" for certain where there can be no box.

    The references let such tokens be chosen and teach them, so that there padding counts.
    """
    return logits.masked_fill(~possible, NOTHING)
