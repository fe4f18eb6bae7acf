"""Linear layers, on a CPU by whichever of PyTorch's libraries is faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOTH = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # else there is no choice, as on a Mac
LARGE = 2**22  # multiplications: with fewer a convolution's preparations cost more than it gains


class Linear(nn.Linear):
    """`nn.Linear` to the outside.

    PyTorch leaves products of fp32 matrices on a CPU to MKL, which keeps to half the width of the vectors that processors of
    AMD have; convolutions it leaves to oneDNN, which does not: on a Zen 5 twice as fast. So here many tokens are the pixels of
    an image of one column, and the layer is a convolution of 1 x 1. In bf16 both ways lead to oneDNN.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., inner) to (..., outer)."""
        fp32 = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not (fp32 and BOTH) or torch.compiler.is_compiling() or x.numel() * self.out_features < LARGE:
            return super().forward(x)
        column = x.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # 1 D tokens 1, channels last: nothing is moved
        # With one thread PyTorch leaves 1 x 1 convolutions to MKL as well unless they are dilated: no other result.
        found = F.conv2d(column, self.weight[:, :, None, None], self.bias, dilation=2)
        return found.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)
