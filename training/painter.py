"""Paint batches of pictures with plain diffusers pipelines over a model folder.

Many different image prompts go in one batch as one tensor of embeddings, handed on as it is:
diffusers would repeat it as for one prompt, and each picture would see all of the prompts
(diffusers issue 9813).
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from torch import Tensor

from training import layout, lora
from training.towers import see

STEPS: Final = 20
GUIDANCE: Final = 3.5
BATCH: Final = 20
#: The style block alone, as `set_ip_adapter_scale` takes it.
STYLE_ONLY: Final[dict[str, Any]] = {"up": {"block_1": 1.0}}
FAST_STEPS: Final = 4


@dataclass(frozen=True)
class Order:
    """Pictures to paint. `image` are uint8 pictures `(n, 3, h, w)`, `control` 0 to 1 likewise.

    `network` is the folder of the ControlNet or T2I-Adapter that takes `control`.
    `hidden`, `(n, h, w)` bool, is what is painted anew of the uint8 pictures `start`, `(n, 3, h,
    w)`; the rest is kept.
    """

    texts: list[str]
    first_seed: int
    image: Tensor | None = None
    scale: float | dict[str, Any] = 1.0
    control: Tensor | None = None
    network: Path = layout.CONTROLNET
    start: Tensor | None = None
    hidden: Tensor | None = None


def _as_they_are(_image: None, embeddings: list[Tensor], *_: object) -> list[Tensor]:
    """Stand in for the pipelines' own preparation; see the module's docstring."""
    return embeddings


def _ready(pipeline: Any) -> Any:  # the pipelines share no narrower type
    pipeline.set_progress_bar_config(disable=True)
    pipeline.prepare_ip_adapter_image_embeds = _as_they_are
    return pipeline


class Painter:
    """A model folder, opened with the three public calls.

    `updates` is a LoRA of the folder to fuse; that of `training.lcm` takes `FAST_STEPS` steps
    without guidance.
    """

    def __init__(self, directory: Path, updates: Path | None = None) -> None:
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message=".*torchvision.*")
        self._directory = directory
        self.plain = _ready(StableDiffusionXLPipeline.from_pretrained(directory))
        self.plain.scheduler = DPMSolverMultistepScheduler.from_config(self.plain.scheduler.config)
        fast = updates == layout.FAST_LORA
        self._steps, self._guidance = (FAST_STEPS, 1.0) if fast else (STEPS, GUIDANCE)
        if updates:
            lora.fuse(self.plain.unet, directory / updates)
        self._parts = dict(self.plain.components)
        self.inpainting = _ready(StableDiffusionXLInpaintPipeline(**self._parts))
        self._controlled: dict[Path, Any] = {}
        self._loaded: str | None = None

    def load(self, adapter: str | None) -> None:
        """Load one of the adapter files, or none. The UNet is shared by both pipelines."""
        if adapter == self._loaded:
            return
        if self._loaded:
            self.plain.unload_ip_adapter()
        if adapter:
            self.plain.load_ip_adapter(
                str(self._directory), subfolder=layout.ADAPTERS, weight_name=adapter
            )
        self._loaded = adapter

    def controlled(self, network: Path) -> Any:  # two kinds of pipelines
        """Return the pipeline with a ControlNet or T2I-Adapter of the folder, on the same UNet."""
        if network not in self._controlled:
            folder = self._directory / network
            if network == layout.SKETCH:
                pipeline = StableDiffusionXLAdapterPipeline(
                    **self._parts, adapter=T2IAdapter.from_pretrained(folder)
                )
            else:
                pipeline = StableDiffusionXLControlNetPipeline(
                    **self._parts, controlnet=ControlNetModel.from_pretrained(folder)
                )
            self._controlled[network] = _ready(pipeline)
        return self._controlled[network]

    @torch.no_grad()
    def paint(self, order: Order, adapter: str | None = layout.BASE_FILE) -> Tensor:
        """Paint all of the order, uint8 `(n, 3, size, size)`; picture i has its own seed."""
        self.load(adapter if order.image is not None else None)
        return torch.cat(
            [
                self._batch(order, slice(start, start + BATCH))
                for start in range(0, len(order.texts), BATCH)
            ]
        )

    def _batch(self, order: Order, rows: slice) -> Tensor:
        texts = order.texts[rows]
        given: dict[str, Any] = {
            "prompt": texts,
            "num_inference_steps": self._steps,
            "guidance_scale": self._guidance,
            "generator": torch.Generator().manual_seed(order.first_seed + rows.start),
            "latents": self._noise(order.first_seed + rows.start, len(texts)),
            "output_type": "pt",
        }
        if order.image is not None:
            given["ip_adapter_image_embeds"] = [self._embeddings(order.image[rows])]
            self.plain.set_ip_adapter_scale(order.scale)
        if order.start is not None and order.hidden is not None:
            return self._inpaint(order.start[rows], order.hidden[rows], given)
        if order.control is None:
            painted: Tensor = self.plain(**given).images
        else:
            given["image"] = order.control[rows]
            painted = self.controlled(order.network)(**given).images
        return (painted * 255).round().to(torch.uint8)

    def _inpaint(self, start: Tensor, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """Paint what is hidden anew, and put the other pixels back as they were."""
        given |= {"image": start.float() / 255, "mask_image": hidden[:, None].float()}
        painted = self.inpainting(**given, strength=1.0).images
        return torch.where(hidden[:, None], (painted * 255).round().to(torch.uint8), start)

    def _noise(self, first_seed: int, n: int) -> Tensor:
        side = self.plain.unet.config.sample_size
        return torch.stack(
            [
                torch.randn(4, side, side, generator=torch.Generator().manual_seed(first_seed + i))
                for i in range(n)
            ]
        )

    def _embeddings(self, pictures: Tensor) -> Tensor:
        """Encode image prompts, `(2 n, 1, ...)`: the unconditional half first, if there is one."""
        encoder = self._encoder()
        seen = see(pictures)
        if self._loaded == layout.PLUS_FILE:
            features = encoder(seen, output_hidden_states=True).hidden_states[-2]
            none = encoder(torch.zeros_like(seen), output_hidden_states=True).hidden_states[-2]
        else:
            features = encoder(seen).image_embeds
            none = torch.zeros_like(features)
        return (features if self._guidance == 1.0 else torch.cat([none, features]))[:, None]

    def _encoder(self) -> Any:  # the pipelines' attribute has no type
        return self.plain.image_encoder

    @torch.no_grad()
    def image_embeddings(self, pictures: Tensor) -> Tensor:
        """Return CLIP image embeddings of unit length, `(n, projection)`."""
        self.load(layout.BASE_FILE)
        return torch.nn.functional.normalize(self._encoder()(see(pictures)).image_embeds)

    @torch.no_grad()
    def text_embeddings(self, texts: list[str]) -> Tensor:
        """Return the second text encoder's embeddings of unit length, `(n, projection)`."""
        tokens = self.plain.tokenizer_2(texts, padding="max_length", return_tensors="pt").input_ids
        embeddings: Tensor = self.plain.text_encoder_2(tokens).text_embeds
        return torch.nn.functional.normalize(embeddings)
