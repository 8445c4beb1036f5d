"""Latents to pictures: the VAE, in tiles where the whole does not fit into memory.

On CUDA it runs on a stream of its own beside the next step, and a thread that is not the
engine's waits for the pixels.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from service.core.errors import NotFinite, OutOfMemory
from workers.engine.loading import LoadedModel

log = logging.getLogger(__name__)

SMALLEST_TILE: Final = 16
"""Side of the smallest tile, in latents."""


class Decoder:
    """Decodes finished rows of any model. Only the engine's thread calls it."""

    def __init__(self, device: torch.device, on_out_of_memory: Callable[[], None]) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._on_out_of_memory = on_out_of_memory

    def decode(self, model: LoadedModel, latents: Tensor) -> Callable[[], Image.Image]:
        """Start decoding `(1, channels, h, w)`; call the result elsewhere to wait for it.

        Raises `OutOfMemory` where not even tiles fit; the result raises `NotFinite` where the
        VAE gives no picture.
        """
        if self._stream is None:
            pixels, finite = self._pixels(model, latents)
            return lambda: _picture(pixels, finite)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            latents.record_stream(self._stream)
            pixels, finite = (
                part.to("cpu", non_blocking=True) for part in self._pixels(model, latents)
            )
            done = torch.cuda.Event()
            done.record()

        def wait() -> Image.Image:
            done.synchronize()
            return _picture(pixels, finite)

        return wait

    def _pixels(self, model: LoadedModel, latents: Tensor) -> tuple[Tensor, Tensor]:
        """One picture as `(height, width, 3)` bytes, and whether all of it was finite."""
        unscaled = _unscale(model.vae, latents.to(model.vae.dtype))
        decoded = self._whole(model, unscaled)
        if decoded is None:
            decoded = self._tiled(model, unscaled)
        picture = (decoded[0] * 0.5 + 0.5).clamp(0, 1).float() * 255
        return picture.round().to(torch.uint8).permute(1, 2, 0), torch.isfinite(decoded).all()

    def _whole(self, model: LoadedModel, latents: Tensor) -> Tensor | None:
        """The decode, or None where it does not fit into memory."""
        try:
            decoded: Tensor = model.vae.decode(latents, return_dict=False)[0]
        except torch.OutOfMemoryError:
            log.warning("a picture does not fit into memory and is decoded in tiles")
        else:
            return decoded
        self._on_out_of_memory()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _tiled(self, model: LoadedModel, latents: Tensor) -> Tensor:
        vae: Any = model.vae
        side = max(SMALLEST_TILE, max(latents.shape[-2:]) // 4)
        vae.tile_latent_min_size = side
        vae.tile_sample_min_size = side * model.pipe.vae_scale_factor
        try:
            decoded: Tensor = vae.tiled_decode(latents, return_dict=False)[0]
        except torch.OutOfMemoryError:
            self._on_out_of_memory()
            raise OutOfMemory(
                "The picture does not fit into the GPU's memory even when decoded in tiles."
            ) from None
        return decoded


def _unscale(vae: Any, latents: Tensor) -> Tensor:
    mean, std = vae.config.latents_mean, vae.config.latents_std
    unscaled: Tensor = latents / vae.config.scaling_factor
    if mean is not None and std is not None:
        mean, std = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, std))
        unscaled = unscaled * std + mean
    return unscaled


def _picture(pixels: Tensor, finite: Tensor) -> Image.Image:
    if not bool(finite):
        raise NotFinite("The VAE gave NaN or infinity instead of a picture.")
    return Image.fromarray(pixels.contiguous().numpy())
