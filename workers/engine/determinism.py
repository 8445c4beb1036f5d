"""Computing by rule: nothing in it is chosen by timing, so the same input gives the same bytes.

A timing falls out differently at each start, a rule does not. It knows nothing of jobs.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from workers.engine import attention
from workers.engine.layers import CrossAttention, SelfAttention


@contextmanager
def by_rule(networks: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Inside, cuDNN takes algorithms by its own rule, and only such as repeat their bytes.

    What it chose otherwise is kept apart from this, also for the same shapes. The attention layers
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


def find_the_fastest(*, wanted: bool) -> None:
    """Whether cuDNN times its algorithms for a shape it meets for the first time.

    Only while warming up: the ones found then serve on, and no job pays for the search.
    """
    torch.backends.cudnn.benchmark = wanted


def _set(benchmark: bool, deterministic: bool) -> None:  # noqa: FBT001 (torch's two flags)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
