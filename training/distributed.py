"""Several processes that train one model: `torchrun --nproc-per-node 2 -m training.NAME`.

One thread a process waits for the others once a step, where two threads of one process wait for
each other at every operation; beside other work on the same cores that is twice as fast. Started
without torchrun there is one process.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch import distributed as dist


def size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's rank, from 0."""
    return int(os.environ.get("RANK", "0"))


def join() -> None:
    """Connect to the other processes, if there are any and it is not done yet."""
    if size() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")


def mean(values: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes."""
    if size() == 1:
        return
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    flat /= size()
    start = 0
    for value in values:
        value.copy_(flat[start : start + value.numel()].view_as(value))
        start += value.numel()


def gather(part: Tensor) -> Tensor:
    """Join the parts of all processes, in their order, along the first dimension.

    The parts must be of one shape.
    """
    if size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)
