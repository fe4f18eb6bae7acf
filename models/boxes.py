"""Box arithmetic on tensors of any leading shape."""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to corners."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((center - half, center + half), dim=-1)


def generalized_iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """GIoU of corner boxes, elementwise with broadcasting: (..., 4) and (..., 4) to (...).

    `eps` joins both divisors, as in DN-DETR and DINO, so that two empty boxes give a number.
    """
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.unbind(-1), b.unbind(-1)  # loops over the last four are slow
    smaller, larger = torch.minimum, torch.maximum
    overlap = extent(larger(ax0, bx0), smaller(ax1, bx1)) * extent(larger(ay0, by0), smaller(ay1, by1))
    hull = extent(smaller(ax0, bx0), larger(ax1, bx1)) * extent(smaller(ay0, by0), larger(ay1, by1))
    union = area(a) + area(b) - overlap
    return overlap / (union + eps) - (hull - union) / (hull + eps)


def extent(begin: Tensor, end: Tensor) -> Tensor:
    """How long a side is; nothing where it ends before it begins."""
    return (end - begin).clamp(min=0)


def area(boxes: Tensor) -> Tensor:
    """Area of corner boxes: (..., 4) to (...)."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return (x1 - x0) * (y1 - y0)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """The logit of x in [0, 1], with x and 1 - x kept above eps.

    DN-DETR and DINO use 1e-3 (logits within +-6.9), Deformable DETR 1e-5.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
