"""Several processes under torchrun, or one: the same calls either way."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dndetr.console import UserError, in_one_line

T = TypeVar("T")


@contextmanager
def processes(setting: str, timeout: float = 1800) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and give this one its device.

    `setting` is train.device. Processes talk over nccl on CUDA and over gloo on a CPU. Where one of them dies, or is silent
    for `timeout` seconds, the others end with a UserError.
    """
    device = choose_device(setting)
    if device.type == "cpu":
        keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        join("nccl" if device.type == "cuda" else "gloo", timeout)
        yield device
    except UserError as error:
        error.alone = not isinstance(error, Agreed)
        raise
    except RuntimeError as error:  # dist.DistBackendError with nccl, a bare RuntimeError with gloo
        if not LOST.search(str(error)):
            raise
        who = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
        lost = UserError(
            f"{who}: another process has died or did not answer within {timeout:.0f} s; what it said itself tells why "
            f"({in_one_line(error)[:150]})"
        )
        lost.alone = True
        raise lost from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def join(backend: str, timeout: float) -> None:
    """Join the other processes. A restart by torchrun must not find the addresses of processes that are gone in its store."""
    store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout))


class Agreed(UserError):
    """An error that every process raises alike, so that one of them tells it for all."""


# How gloo and nccl tell that a neighbour is gone.
LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|timed? ?out|nccl|socket|peer", re.IGNORECASE)


def choose_device(setting: str) -> torch.device:
    """`auto` is the first of cuda, mps and cpu that this machine has; a device that it has not is refused."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name in present if present[name]) if setting == "auto" else setting
    if not present[name]:
        has = ", ".join(name for name in present if present[name])
        raise UserError(f"train.device: {name} is not available here; use one of: auto, {has}")
    return torch.device(name)


def keep_freed_memory() -> None:
    """Have glibc keep large blocks that were freed. By default it gives each one back to the kernel and takes the next one
    anew, page by page: a tenth of the time of a step whose activations are large.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """The one process that prints and writes."""
    return rank() == 0


def launched_first() -> bool:
    """Whether this is the first of the processes that torchrun started, also while they are not joined."""
    return os.environ.get("RANK", "0") == "0"


def all_mean(values: torch.Tensor) -> torch.Tensor:
    """The elementwise mean over the processes, the same in each."""
    if world() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world()


def gather(value: T) -> list[T]:
    """This value of every process, in order of rank, in each of them."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def share_buffers(model: torch.nn.Module) -> None:
    """Give every process the buffers (batch norm's statistics) of the main one, whose checkpoint will hold them."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if world() == 1:
        return number
    shared = torch.tensor(number, device=None if dist.get_backend() == "gloo" else "cuda")
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def together(action: Callable[[], T]) -> T:
    """Run `action` in every process. If it fails with a UserError in one, every process fails with all that was said."""
    result, said = None, ()
    try:
        result = action()
    except UserError as error:
        said = error.lines
        if world() == 1:
            raise
    lines = [line for lines in gather(said) for line in lines]
    if lines:
        raise Agreed(*dict.fromkeys(lines))
    return result


def on_main(action: Callable[[], T]) -> T | None:
    """Run `action` in the main process, None elsewhere. If it fails with a UserError, every process fails with it."""
    return together(lambda: action() if is_main() else None)
