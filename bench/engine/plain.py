"""The plain diffusers pipelines, called as their documentation says: what the engine must equal.

The engine's tests compare pixels with it, the benches time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from numpy.typing import NDArray
from PIL import Image

from service.core.catalog import Adapter, ModelEntry
from service.core.params import GenerateRequest
from workers.engine.models.hub import loader_arguments
from workers.engine.schedulers import CLASSES


class Plain:
    """Plain pipelines over one model of a catalog, kept loaded by adapter and ControlNet."""

    def __init__(self, entry: ModelEntry, device: torch.device) -> None:
        self._entry = entry
        self._device = device
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._pipes: dict[tuple[str, str | None], Any] = {}

    def pipe(self, adapter: str, control: str | None) -> Any:
        """The pipeline with one adapter loaded, with or without a ControlNet."""
        if (adapter, control) not in self._pipes:
            self._pipes[adapter, control] = self._load(adapter, control)
        return self._pipes[adapter, control]

    def pictures(
        self,
        request: GenerateRequest,
        images: Sequence[Image.Image],
        control_map: Image.Image | None = None,
        *,
        output_type: str = "np",
    ) -> NDArray[np.float32] | list[Image.Image]:
        """Run a request through the plain pipeline.

        Returns `(pictures, height, width, 3)`, 0 to 1; a list of pictures for `pil`.
        """
        pipe = self.pipe(request.adapter, request.control.type if request.control else None)
        pipe.scheduler = CLASSES[request.scheduler].from_config(pipe.scheduler.config)
        _set_scale(pipe, self._entry.adapters[request.adapter], request.ip_scale)
        extra: dict[str, Any] = {}
        if request.control is not None:
            extra = {
                "image": control_map,
                "controlnet_conditioning_scale": request.control.scale,
                "control_guidance_start": request.control.start,
                "control_guidance_end": request.control.end,
            }
        output = pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            ip_adapter_image=[list(images)],
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            num_images_per_prompt=request.num_images,
            generator=[
                torch.Generator("cpu").manual_seed(request.seed + index)
                for index in range(request.num_images)
            ],
            output_type=output_type,
            **extra,
        )
        pictures: NDArray[np.float32] | list[Image.Image] = output.images
        return pictures

    def _load(self, adapter: str, control: str | None) -> Any:
        entry, kind, parts = self._entry, StableDiffusionXLPipeline, {}
        if entry.vae is not None:
            parts["vae"] = AutoencoderKL.from_pretrained(
                entry.vae.location, dtype=self._dtype, **loader_arguments(entry.vae)
            )
        if control is not None:
            kind = StableDiffusionXLControlNetPipeline
            source = entry.controlnets[control]
            parts["controlnet"] = ControlNetModel.from_pretrained(
                source.location, dtype=self._dtype, **loader_arguments(source)
            )
        pipe = kind.from_pretrained(
            entry.base.location, dtype=self._dtype, **loader_arguments(entry.base), **parts
        )
        source_of_adapter = entry.adapters[adapter]
        pipe.load_ip_adapter(
            source_of_adapter.location,
            subfolder=source_of_adapter.subfolder or "",
            weight_name=source_of_adapter.weight_name,
            image_encoder_folder=source_of_adapter.image_encoder,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self._device)


def _set_scale(pipe: Any, adapter: Adapter, ip_scale: float) -> None:
    scales = adapter.block_scales
    pipe.set_ip_adapter_scale(1.0 if scales is None else scales.model_dump())
    for processor in pipe.unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [ip_scale * scale for scale in processor.scale]
