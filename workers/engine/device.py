"""The device that computes, and copies to it."""

import torch
from torch import Tensor

from service.core.errors import ConfigurationError
from service.core.settings import Device


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
