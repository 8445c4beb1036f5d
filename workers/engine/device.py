"""The device that computes, its CPU threads, and copies to it."""

from typing import Final

import torch
from torch import Tensor

from service.core.errors import ConfigurationError
from service.core.settings import Device

CPU_THREADS: Final = torch.get_num_threads()
"""How many threads torch takes by itself: one for each core, or OMP_NUM_THREADS."""


def set_threads(count: int) -> None:
    """Let operators on the calling thread, and on threads that begin later, use `count` threads.

    On a CPU only one thread of a process may use several. OpenMP keeps a team for each thread that
    ever did. Once all teams together have more threads than there are cores, no team waits for its
    next operator awake any more; the kernel has to wake it each time. On two cores a step of two
    entries took 38 ms so instead of 20, one of 32 entries 125 instead of 98.
    """
    torch.get_num_threads()  # or else the thread's first operator sets the number once more
    torch.set_num_threads(count)


def choose_device(wanted: Device) -> torch.device:
    """The device for a setting. Raises `ConfigurationError` where CUDA is asked for and absent."""
    if wanted is Device.CPU or (wanted is Device.AUTO and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigurationError("IMAGEPROMPT_DEVICE is cuda, but PyTorch finds no CUDA device")
    return torch.device("cuda")


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor to `device`, through pinned memory where that is a GPU.

    An ordinary copy would wait until the GPU has done all that was started before.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, dtype, non_blocking=True)
    return tensor.to(device, dtype)
