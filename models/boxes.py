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
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = area(a) + area(b) - overlap
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return overlap / (union + eps) - (hull - union) / (hull + eps)


def area(boxes: Tensor) -> Tensor:
    """Area of corner boxes: (..., 4) to (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """The logit of x in [0, 1], with x and 1 - x kept above eps.

    DN-DETR and DINO use 1e-3 (logits within +-6.9), Deformable DETR 1e-5.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
