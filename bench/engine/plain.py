"""The plain diffusers pipelines, called as their documentation says: what the engine must equal.

The engine's tests compare pixels with it, the benches time.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from diffusers.image_processor import IPAdapterMaskProcessor, VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image

from service.core.catalog import Adapter, BlockScales, ModelEntry, Source
from service.core.param_types import IpTarget
from service.core.params import GenerateRequest
from workers.engine.models.hub import loader_arguments
from workers.engine.schedulers import CLASSES, options

Read = Callable[[str], Image.Image]
PIPELINES: Final[Mapping[tuple[str, bool], Any]] = {
    ("text", False): StableDiffusionXLPipeline,
    ("img2img", False): StableDiffusionXLImg2ImgPipeline,
    ("inpaint", False): StableDiffusionXLInpaintPipeline,
    ("text", True): StableDiffusionXLControlNetPipeline,
    ("img2img", True): StableDiffusionXLControlNetImg2ImgPipeline,
    ("inpaint", True): StableDiffusionXLControlNetInpaintPipeline,
}
"""By the task, and whether there are ControlNets."""
UNGUIDED: Final = 1 + 1e-9
"""A guidance scale with which a pipeline runs both branches and takes the conditional one."""


class Plain:
    """Plain pipelines over one model of a catalog, kept loaded by adapters and ControlNets.

    `targets` are the scales that `set_ip_adapter_scale` takes for each `ip_target`.
    """

    def __init__(
        self,
        entry: ModelEntry,
        device: torch.device,
        targets: Mapping[IpTarget, dict[str, Any]] | None = None,
    ) -> None:
        self._entry = entry
        self._device = device
        self._targets = targets or {}
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._pipes: dict[tuple[object, ...], Any] = {}

    def pictures(
        self, request: GenerateRequest, read: Read, *, output_type: str = "np"
    ) -> NDArray[np.float32] | list[Image.Image]:
        """Run a request through the plain pipeline; `read` reads an upload by its key.

        Returns `(pictures, height, width, 3)`, 0 to 1; a list of pictures for `pil`.
        """
        pipe = self._pipe(
            tuple(request.ip_scales),
            tuple(control.type for control in request.controls),
            "inpaint" if request.mask_image else "img2img" if request.init_image else "text",
            tuple(request.loras),
        )
        if request.loras:
            pipe.set_adapters(list(request.loras), list(request.loras.values()))
        pipe.scheduler = CLASSES[request.scheduler].from_config(
            pipe.own_scheduler.config, **options(request.scheduler, request.sigmas)
        )
        schedule = _Schedule(self._entry, request, self._targets)
        schedule.apply(pipe, 0)
        output = pipe(
            prompt=request.prompt,
            clip_skip=request.clip_skip or None,
            negative_prompt=request.negative_prompt or None,
            **_size(pipe, request),
            num_inference_steps=request.steps,
            guidance_scale=schedule.guidance(0),
            num_images_per_prompt=request.num_images,
            generator=[
                torch.Generator("cpu").manual_seed(request.seed + index)
                for index in range(request.num_images)
            ],
            output_type=output_type,
            **_callback(pipe, schedule),
            **_image_prompts(pipe, request, read),
            **self._controls(pipe, request, read),
            **_init_image(request, read),
        )
        pictures: NDArray[np.float32] | list[Image.Image] = output.images
        return pictures

    def _pipe(
        self,
        adapters: tuple[str, ...],
        controls: tuple[str, ...],
        task: str,
        loras: tuple[str, ...],
    ) -> Any:
        """The pipeline with these adapters, ControlNets and LoRAs."""
        key = (adapters, controls, task, loras)
        if key not in self._pipes:
            self._pipes[key] = self._load(*key)
        return self._pipes[key]

    def _load(
        self,
        adapters: tuple[str, ...],
        controls: tuple[str, ...],
        task: str,
        loras: tuple[str, ...],
    ) -> Any:
        entry, parts = self._entry, {}
        kind = PIPELINES[task, bool(controls)]
        if entry.vae is not None:
            parts["vae"] = AutoencoderKL.from_pretrained(
                entry.vae.location, dtype=self._dtype, **loader_arguments(entry.vae)
            )
        if controls and controls[0] in entry.t2i_adapters:
            kind = StableDiffusionXLAdapterPipeline
            parts["adapter"] = self._networks(T2IAdapter, entry.t2i_adapters, controls)
        elif controls:
            union = entry.controlnets[controls[0]].control_mode is not None
            kind = StableDiffusionXLControlNetUnionPipeline if union else kind
            parts["controlnet"] = self._networks(
                ControlNetUnionModel if union else ControlNetModel, entry.controlnets, controls
            )
        pipe = kind.from_pretrained(
            entry.base.location, dtype=self._dtype, **loader_arguments(entry.base), **parts
        )
        sources: list[Adapter] = [entry.adapters[name] for name in adapters]
        pipe.load_ip_adapter(
            [source.location for source in sources],
            subfolder=[source.subfolder or "" for source in sources],
            weight_name=[source.weight_name for source in sources],
            image_encoder_folder=sources[0].image_encoder,
        )
        for name in loras:
            lora = entry.loras[name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft warns of a second adapter
                pipe.load_lora_weights(
                    lora.location, weight_name=lora.weight_name, adapter_name=name
                )
        pipe.set_progress_bar_config(disable=True)
        pipe.own_scheduler = pipe.scheduler
        return pipe.to(self._device)

    def _controls(self, pipe: Any, request: GenerateRequest, read: Read) -> dict[str, Any]:
        """The arguments for control maps."""
        controls = request.controls
        if not controls:
            return {}

        def each(values: list[Any]) -> Any:
            return values if len(values) > 1 else values[0]

        union = isinstance(pipe, StableDiffusionXLControlNetUnionPipeline)
        name = "control_image" if request.init_image or union else "image"
        maps = {name: each([read(control.key) for control in controls])}
        scales = each([control.scale for control in controls])
        if isinstance(pipe, StableDiffusionXLAdapterPipeline):
            end = controls[0].end
            return {
                **maps,
                "adapter_conditioning_scale": scales,
                "adapter_conditioning_factor": end,
            }
        modes = [self._entry.controlnets[control.type].control_mode for control in controls]
        return {
            **maps,
            **({"control_mode": each(modes)} if union else {}),
            "controlnet_conditioning_scale": scales,
            "control_guidance_start": each([control.start for control in controls]),
            "control_guidance_end": each([control.end for control in controls]),
        }

    def _networks(self, kind: Any, sources: Mapping[str, Source], names: tuple[str, ...]) -> Any:
        networks = [
            kind.from_pretrained(
                sources[name].location, dtype=self._dtype, **loader_arguments(sources[name])
            )
            for name in names
        ]
        return networks if len(networks) > 1 else networks[0]


class _Schedule:
    """What changes between steps: sets scales and guidance of the next one, as a callback."""

    def __init__(
        self,
        entry: ModelEntry,
        request: GenerateRequest,
        targets: Mapping[IpTarget, dict[str, Any]],
    ) -> None:
        self._entry = entry
        self._request = request
        self._targets = targets
        order = CLASSES[request.scheduler].order
        run = int(request.steps * (request.strength if request.init_image else 1))
        self._steps = order * run - (order - 1)

    def __call__(self, pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Called by the pipeline after each step."""
        self.apply(pipe, step + 1)
        if self._request.guided:
            pipe._guidance_scale = self.guidance(step + 1)  # noqa: SLF001 (what callbacks set)
        return tensors

    def guidance(self, step: int) -> float:
        """The guidance scale of a step."""
        request = self._request
        if not request.guided:
            return request.guidance_scale
        share = step / self._steps
        guided = request.guidance_start <= share < request.guidance_end
        return request.guidance_scale if guided else UNGUIDED

    def apply(self, pipe: Any, step: int) -> None:
        """Set the adapters' scales for a step."""
        request = self._request
        start, end = step / self._steps, (step + 1) / self._steps
        active = request.ip_start <= start and end <= request.ip_end
        for index, (name, ip_scale) in enumerate(request.ip_scales.items()):
            blocks: BlockScales | None = self._entry.adapters[name].block_scales
            scales = self._targets.get(request.ip_target) or (blocks and blocks.model_dump())
            count = len(request.ip_scales)
            pipe.set_ip_adapter_scale([scales or 1.0] * count)
            for processor in pipe.unet.attn_processors.values():
                if hasattr(processor, "to_k_ip"):
                    own = processor.scale[index] * ip_scale * active
                    kept = getattr(processor, "kept", [0.0] * count)
                    processor.kept = [own if at == index else kept[at] for at in range(count)]
        for processor in pipe.unet.attn_processors.values():
            if hasattr(processor, "to_k_ip"):
                processor.scale = processor.kept


def _size(pipe: Any, request: GenerateRequest) -> dict[str, int]:
    """The output's size; img2img pipelines without ControlNet take the picture's."""
    if isinstance(pipe, StableDiffusionXLImg2ImgPipeline):
        return {}
    return {"width": request.width, "height": request.height}


def _callback(pipe: Any, schedule: _Schedule) -> dict[str, Any]:
    takes_it = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
    return {"callback_on_step_end": schedule} if takes_it else {}


def _init_image(request: GenerateRequest, read: Read) -> dict[str, Any]:
    """The arguments for image-to-image and inpainting."""
    if not request.init_image:
        return {}
    arguments = {"image": read(request.init_image[0].key), "strength": request.strength}
    if request.mask_image:
        mask = read(request.mask_image[0].key).resize((request.width, request.height))
        arguments["mask_image"] = VaeImageProcessor.blur(mask, request.mask_blur)
    return arguments


def _image_prompts(pipe: Any, request: GenerateRequest, read: Read) -> dict[str, Any]:
    """The arguments for image prompts, with masks and negative images where there are any."""
    images = {
        name: [read(image.key) for image in request.images if image.adapter == name]
        for name in request.ip_scales
    }
    arguments: dict[str, Any] = {"ip_adapter_image": list(images.values())}
    if request.image_mask:
        size = {"height": request.height, "width": request.width}
        masks = []
        for name in request.ip_scales:
            keys = [
                image.mask.key for image in request.images if image.adapter == name and image.mask
            ]
            own = IPAdapterMaskProcessor().preprocess([read(key) for key in keys], **size)
            masks.append(own.reshape(1, len(keys), *own.shape[-2:]))
        arguments["cross_attention_kwargs"] = {"ip_adapter_masks": masks}
    if request.negative_image and request.guided:
        negative = [read(image.key) for image in request.negative_image]
        embeds = _embeddings(pipe, list(images.values()))
        against = _embeddings(pipe, [negative] * len(images))
        pairs = zip(embeds, against, strict=True)
        return {
            **arguments,
            "ip_adapter_image": None,
            "ip_adapter_image_embeds": [torch.cat([less, more]) for more, less in pairs],
        }
    return arguments


def _embeddings(pipe: Any, images: list[list[Image.Image]]) -> list[torch.Tensor]:
    embeds: list[torch.Tensor] = pipe.prepare_ip_adapter_image_embeds(
        images, None, pipe.device, 1, do_classifier_free_guidance=False
    )
    return embeds
