"""Stable Diffusion XL: two text encoders, pooled text and picture sizes as added conditions."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from service.core.catalog import BlockScales
from service.core.errors import ConfigurationError
from service.core.param_types import IpTarget
from workers.engine.cache import Embedding, Layout
from workers.engine.device import to_device
from workers.engine.models.unet import UNetModel


class SDXL(UNetModel):
    """A base of SDXL's shape. Its text embeddings are `tokens` and `pooled`."""

    pipeline = StableDiffusionXLPipeline
    pipeline_arguments: ClassVar[Mapping[str, Any]] = {"add_watermarker": False}
    parts: ClassVar[Mapping[str, Any]] = {
        **UNetModel.parts,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    tokenizers = ("tokenizer", "tokenizer_2")

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

    @staticmethod
    def ip_targets(unet: Any) -> Mapping[IpTarget, BlockScales]:
        """InstantStyle's blocks (arXiv 2404.02733, section 3.2).

        The second transformer of the first upsampling block carries the style, the second one of
        the last downsampling block the layout.
        """
        style = {"block_0": _only_second(unet.up_blocks[0])}
        last = len(unet.down_blocks) - 1
        layout = {f"block_{last}": _only_second(unet.down_blocks[last])}
        return {
            IpTarget.STYLE: BlockScales(up=style),
            IpTarget.LAYOUT: BlockScales(down=layout),
            IpTarget.STYLE_LAYOUT: BlockScales(up=style, down=layout),
        }

    def text_layout(self, chunks: int) -> Layout:
        """See `base.Model`."""
        tokens = chunks * self.pipe.tokenizer.model_max_length
        return {
            "tokens": (1, tokens, self.unet.config.cross_attention_dim),
            "pooled": (1, self.pipe.text_encoder_2.config.projection_dim),
        }

    @property
    def zero_negative(self) -> bool:
        """See `base.Model`."""
        return bool(self.pipe.config.force_zeros_for_empty_prompt)

    @property
    def max_clip_skip(self) -> int:
        """See `base.Model`; the last layer is left out in any case."""
        encoders, _ = self.text_encoders(self.pipe)
        return int(min(encoder.config.num_hidden_layers for encoder in encoders)) - 1

    def encode_ids(self, ids: Sequence[Tensor], clip_skip: int) -> Embedding:
        """See `UNetModel`; the layers that diffusers' `encode_prompt` takes."""
        first = self.pipe.text_encoder(ids[0], output_hidden_states=True)
        second = self.pipe.text_encoder_2(ids[1], output_hidden_states=True)
        hidden = [out.hidden_states[-(clip_skip + 2)] for out in (first, second)]
        return {"tokens": torch.cat(hidden, dim=-1), "pooled": second.text_embeds}

    def encode_plain(self, text: str, clip_skip: int) -> Embedding:
        """See `UNetModel`; diffusers' own `encode_prompt`."""
        tokens, _, pooled, _ = self.pipe.encode_prompt(
            text, device=self.device, do_classifier_free_guidance=False, clip_skip=clip_skip or None
        )
        return {"tokens": tokens, "pooled": pooled}


def _only_second(block: Any) -> list[float]:
    """Scales of a block's transformers: 1 for the second one, or the only one, and else 0."""
    count = len(block.attentions)
    return [float(index == min(1, count - 1)) for index in range(count)]


load = SDXL.load
