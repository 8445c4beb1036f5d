"""Several processes that train as one: `torchrun --nproc-per-node 2 -m training.NAME`.

One thread a process waits for the others once a step, where two threads of one process wait for
each other at every operation; beside other work on the same cores that is twice as fast. It knows
nothing of what is trained; started without torchrun, a team is one process.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch import distributed as dist


def size() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's place among them, 0 the first."""
    return int(os.environ.get("RANK", "0"))


def join() -> None:
    """Meet the others. Does nothing alone, or when met already."""
    if size() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")


def mean(values: list[Tensor]) -> None:
    """Replace each tensor by its mean over the team."""
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
