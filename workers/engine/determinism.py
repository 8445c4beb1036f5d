"""Deterministic computation: nothing is chosen by timing, so the same input gives the same bytes.

A timing gives another choice at each start; a fixed rule does not.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from workers.engine import attention
from workers.engine.models.layers import CrossAttention, SelfAttention


@contextmanager
def deterministic(networks: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Inside, cuDNN chooses by its own heuristic, and only algorithms that repeat their bytes.

    Choices that it made by timing are not used, not even for the same shapes. The attention layers
    of `networks` run on SDPA, whichever kernel was the fastest. Only for the engine's thread.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    with ExitStack() as stack:
        cudnn.benchmark, cudnn.deterministic = False, True
        stack.callback(_set, *before)
        for layer in (part for network in networks for part in network.modules()):
            if isinstance(layer, SelfAttention | CrossAttention):
                stack.callback(setattr, layer, "kernel", layer.kernel)
                layer.kernel = attention.sdpa
        yield


def set_cudnn_benchmark(*, enabled: bool) -> None:
    """Whether cuDNN times its algorithms for each new shape.

    Only during warm-up: what was fastest then is used from then on, and no job waits for a search.
    """
    torch.backends.cudnn.benchmark = enabled


def _set(benchmark: bool, deterministic: bool) -> None:  # noqa: FBT001 (torch's two flags)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
