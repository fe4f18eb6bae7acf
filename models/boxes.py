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
    ax0, ay0, ax1, ay1 = a.unbind(-1)  # number by number: loops over the last two or four are slow
    bx0, by0, bx1, by1 = b.unbind(-1)
    shared_x = torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)
    shared_y = torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    overlap = shared_x.clamp(min=0) * shared_y.clamp(min=0)
    union = area(a) + area(b) - overlap
    hull_x = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    hull_y = torch.maximum(ay1, by1) - torch.minimum(ay0, by0)
    hull = hull_x.clamp(min=0) * hull_y.clamp(min=0)
    return overlap / (union + eps) - (hull - union) / (hull + eps)


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
