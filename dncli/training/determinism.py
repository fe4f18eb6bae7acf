"""`--deterministic`: a training that gives the same bits again, as far as PyTorch lets it, and what it does not let."""

from __future__ import annotations

import os
import warnings

import torch

WORKSPACES = (":4096:8", ":16:8")  # of cuBLAS: the settings with which it always sums in the same order


def be_deterministic(device: torch.device) -> list[str]:
    """Have this process compute the same bits every time, and name what it cannot promise, in a sentence each.

    To be called before anything is computed on the device. On a CPU all parts are exact as they are; PyTorch now raises if
    one is not. On CUDA it may but warn: it has no exact gradient for deformable attention, and neither has the operator.
    """
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    if device.type == "cpu":
        return [f"equal bits need as many threads ({torch.get_num_threads()}), the same kind of processor and versions"]
    if device.type != "cuda":
        return [f"PyTorch promises nothing for {device.type}"]
    torch.backends.cudnn.benchmark = False  # it would take the convolution that was fastest this time
    unfuse_attention()
    warnings.filterwarnings("ignore", "grid_sampler_2d_backward_cuda does not have a deterministic implementation")
    excepted = [
        "equal bits need as many processes, the same kind of GPU and versions",
        "the gradient of deformable attention is added up in any order (hosts without it, such as dab_detr, are exact)",
    ]
    if os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES[0]) not in WORKSPACES:
        excepted.append(f"cuBLAS may sum in any order: unset CUBLAS_WORKSPACE_CONFIG, or set it to {WORKSPACES[0]}")
    return excepted


def unfuse_attention() -> None:
    """Where PyTorch may but warn, the gradients of its fused attention are not exact, and those of its single steps are."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
