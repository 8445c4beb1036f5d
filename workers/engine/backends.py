"""Which attention kernel runs on this machine: the fastest one measured, printed at start-up.

On CUDA xformers and PyTorch's SDPA, with the kernel of its own choice (flash) and with cuDNN's, are
compared on the shapes that take most of a step's time. On a CPU there is SDPA only.
"""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from typing import Final

import torch

from service.core.errors import ConfigurationError
from service.core.settings import AttentionBackend, Device
from workers.engine import attention
from workers.engine.attention import Kernel

log = logging.getLogger(__name__)

KERNELS: Final[Mapping[str, Kernel]] = {
    "sdpa": attention.sdpa,
    "sdpa cudnn": attention.cudnn,
    "xformers": attention.xformers,
}
SHAPES: Final = ((2, 4096, 4096, 10, 64), (2, 1024, 1024, 20, 64), (2, 4096, 77, 10, 64))
"""(batch, queries, tokens, heads, head width) of SDXL at 1024 x 1024, where its time goes."""
REPEATS: Final = 20


def choose_device(wanted: Device) -> torch.device:
    """The device for a setting. Raises `ConfigurationError` where CUDA is asked for and absent."""
    if wanted is Device.CPU or (wanted is Device.AUTO and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigurationError("IMAGEPROMPT_DEVICE is cuda, but PyTorch finds no CUDA device")
    return torch.device("cuda")


def choose_kernel(
    wanted: AttentionBackend,
    device: torch.device,
    *,
    has_xformers: bool | None = None,
    measure: Callable[[Kernel], float] | None = None,
) -> Kernel:
    """The kernel for a setting on this machine; one log line says what was taken and why.

    `measure` gives a kernel's time in seconds. Raises `ConfigurationError` where xformers is
    asked for and cannot run.
    """
    present = importlib.util.find_spec("xformers") is not None
    usable = (present if has_xformers is None else has_xformers) and device.type == "cuda"
    if wanted is AttentionBackend.XFORMERS:
        if not usable:
            raise ConfigurationError(
                "IMAGEPROMPT_ATTENTION is xformers, which needs CUDA and the package xformers"
            )
        return attention.xformers
    if device.type == "cuda" and not usable:
        log.warning("attention: xformers is not installed, SDPA serves in its place")
    if wanted is AttentionBackend.SDPA or device.type != "cuda":
        return attention.sdpa
    candidates = [name for name in KERNELS if usable or name != "xformers"]
    seconds = {name: (measure or _measure)(KERNELS[name]) for name in candidates}
    fastest = min(seconds, key=lambda name: seconds[name])
    figures = ", ".join(f"{name} {time * 1e3:.2f} ms" for name, time in seconds.items())
    log.info("attention: %s is the fastest here (%s)", fastest, figures)
    return KERNELS[fastest]


def _measure(kernel: Kernel) -> float:
    """Seconds that a kernel takes for `SHAPES` in float16 on the GPU; endless where it fails."""
    total = 0.0
    try:
        for batch, queries, tokens, heads, width in SHAPES:
            query = torch.randn(batch, queries, heads, width, device="cuda", dtype=torch.float16)
            key = torch.randn(batch, tokens, heads, width, device="cuda", dtype=torch.float16)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(3):
                kernel(query, key, key, None)
            start.record()
            for _ in range(REPEATS):
                kernel(query, key, key, None)
            end.record()
            end.synchronize()
            total += start.elapsed_time(end) / REPEATS / 1e3
    except (RuntimeError, NotImplementedError) as error:
        log.warning("attention: a kernel does not run here: %s", error)
        return float("inf")
    return total
