"""`--deterministic`: a training that gives the same bits again, as far as PyTorch lets it, and what it does not let."""

from __future__ import annotations

import os
import warnings

import torch
from torch import nn

from dncli.training.prepare import samples

WORKSPACES = (":4096:8", ":16:8")  # of cuBLAS: the settings with which it always sums in the same order


def be_deterministic(model: nn.Module, device: torch.device) -> list[str]:
    """Have this process compute the same bits every time, and name what it cannot promise, in a sentence each.

    To be called before the model is on its device. On a CPU nothing is left but the number of threads, among which sums are
    split: without this call it is so already, but PyTorch now raises where a part would break the promise. It does so on
    CUDA, too, for a detector without deformable attention; with it PyTorch may but warn, since it knows no such gradient.
    """
    sampling = samples(model)
    strict = device.type == "cpu" or (device.type == "cuda" and not sampling)
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    if device.type == "cpu":
        return [f"equal bits need as many threads ({torch.get_num_threads()}), the same kind of processor and versions"]
    if device.type != "cuda":
        return [f"PyTorch promises nothing for {device.type}"]
    torch.backends.cudnn.benchmark = False  # it takes the convolution that was fastest, today
    attend_step_by_step()
    excepted = ["equal bits need as many processes, the same kind of GPU and versions"]
    if os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES[0]) not in WORKSPACES:
        excepted.append(f"CUBLAS_WORKSPACE_CONFIG lets cuBLAS sum in any order; unset it, or set it to {WORKSPACES[0]}")
    if sampling:
        warnings.filterwarnings("ignore", "grid_sampler_2d_backward_cuda does not have a deterministic implementation")
        excepted.append("the gradient of deformable attention is added up in any order; the detectors without it are exact")
    return excepted


def attend_step_by_step() -> None:
    """Leave fused attention, whose gradients are exact only where nothing else in PyTorch may but warn."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
