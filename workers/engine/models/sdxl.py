"""Stable Diffusion XL: two text encoders, pooled text and picture sizes as added conditions."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from service.core.errors import ConfigurationError
from workers.engine.cache import Embedding, Layout
from workers.engine.device import to_device
from workers.engine.models.unet import UNetModel


class SDXL(UNetModel):
    """A base of SDXL's shape. Its text embeddings are `tokens` and `pooled`."""

    pipeline = StableDiffusionXLPipeline
    pipeline_arguments: ClassVar[Mapping[str, Any]] = {"add_watermarker": False}

    @classmethod
    def check(cls, config: Mapping[str, Any], name: str) -> None:
        """Raise `ConfigurationError` where the UNet is not built as SDXL's."""
        if config.get("addition_embed_type") != "text_time":
            raise ConfigurationError(
                f"UNet {name} is not SDXL-shaped (text_time); `family` in models.yaml names another"
            )

    @staticmethod
    def text_encoders(pipe: Any) -> tuple[list[Any], list[Any]]:
        """Both text encoders and their tokenizers."""
        return [pipe.text_encoder, pipe.text_encoder_2], [pipe.tokenizer, pipe.tokenizer_2]

    @staticmethod
    def embed_times(net: Any, timesteps: Tensor, text: Embedding, size: tuple[int, int]) -> Tensor:
        """Embeddings of all steps, time and added conditions together.

        The sizes are those of the plain pipeline: original and target size are the picture's, and
        nothing is cropped. Source: diffusers' `UNet2DConditionModel.get_aug_embed`.
        """
        pooled = text["pooled"]
        sizes = torch.tensor([*size, 0, 0, *size], dtype=pooled.dtype)
        time_ids = to_device(sizes, pooled.device)
        times = net.time_embedding(net.time_proj(timesteps).to(pooled.dtype))
        added_sizes = net.add_time_proj(time_ids).flatten().expand(len(pooled), -1)
        added = net.add_embedding(torch.cat([pooled, added_sizes], dim=-1).to(times.dtype))
        joined: Tensor = times[None] + added[:, None]
        return joined

    @property
    def text_layout(self) -> Layout:
        """See `base.Model`."""
        tokens = self.pipe.tokenizer.model_max_length
        return {
            "tokens": (1, tokens, self.unet.config.cross_attention_dim),
            "pooled": (1, self.pipe.text_encoder_2.config.projection_dim),
        }

    @property
    def zero_negative(self) -> bool:
        """See `base.Model`."""
        return bool(self.pipe.config.force_zeros_for_empty_prompt)

    def encode_text(self, text: str) -> Embedding:
        """See `base.Model`; diffusers' own `encode_prompt`."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            text, device=self.device, do_classifier_free_guidance=False
        )
        return {"tokens": tokens, "pooled": pooled}


load = SDXL.load
