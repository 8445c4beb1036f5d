"""The plain diffusers pipelines, called as their documentation says: what the engine must equal."""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from service.core.request import GenerateRequest
from workers.engine.schedulers import CLASSES

FILES = {"base": "ip-adapter.safetensors", "plus": "ip-adapter-plus.safetensors"}


class Plain:
    """Plain pipelines over one model folder, kept loaded by adapter and ControlNet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pipes: dict[tuple[str, bool], StableDiffusionXLPipeline] = {}

    def pipe(self, adapter: str, *, control: bool) -> StableDiffusionXLPipeline:
        """The pipeline with one adapter loaded, with or without the ControlNet."""
        if (adapter, control) not in self._pipes:
            parts = {}
            kind = StableDiffusionXLPipeline
            if control:
                kind = StableDiffusionXLControlNetPipeline
                parts["controlnet"] = ControlNetModel.from_pretrained(
                    self._folder / "controlnets" / "outline", use_safetensors=True
                )
            pipe = kind.from_pretrained(self._folder, use_safetensors=True, **parts)
            pipe.load_ip_adapter(self._folder, subfolder="adapters", weight_name=FILES[adapter])
            pipe.set_progress_bar_config(disable=True)
            self._pipes[adapter, control] = pipe
        return self._pipes[adapter, control]

    def pictures(
        self,
        request: GenerateRequest,
        images: list[Image.Image],
        control_map: Image.Image | None = None,
    ) -> np.ndarray:
        """Run the same request through the plain pipeline.

        Returns `(pictures, height, width, 3)`, 0 to 1.
        """
        pipe = self.pipe(request.adapter, control=control_map is not None)
        pipe.scheduler = CLASSES[request.scheduler].from_config(pipe.scheduler.config)
        pipe.set_ip_adapter_scale(request.ip_scale)
        extra = {}
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
            ip_adapter_image=[images],
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            num_images_per_prompt=request.num_images,
            generator=[
                torch.Generator("cpu").manual_seed(request.seed + index)
                for index in range(request.num_images)
            ],
            output_type="np",
            **extra,
        )
        pictures: np.ndarray = output.images
        return pictures
