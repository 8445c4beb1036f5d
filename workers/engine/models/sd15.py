"""Stable Diffusion 1.5 and its custom models: one text encoder, no added conditions."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel

from service.core.catalog import BlockScales
from service.core.errors import ConfigurationError
from service.core.param_types import IpTarget
from workers.engine.cache import Embedding, Layout
from workers.engine.models.unet import UNetModel


class SD15(UNetModel):
    """A base of Stable Diffusion 1.x's or 2.x's shape. Its text embedding is `tokens`."""

    pipeline = StableDiffusionPipeline
    pipeline_arguments: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }
    parts: ClassVar[Mapping[str, Any]] = {**UNetModel.parts, "text_encoder": CLIPTextModel}
    tokenizers = ("tokenizer",)

    @classmethod
    def check(cls, config: Mapping[str, Any], name: str) -> None:
        """Raise `ConfigurationError` where the UNet takes conditions that SD 1.5's does not."""
        kind = config.get("addition_embed_type")
        if kind is not None:
            raise ConfigurationError(
                f"UNet {name} takes added conditions ({kind}), which Stable Diffusion 1.5 does not "
                "have; `family` in models.yaml names another"
            )

    @staticmethod
    def text_encoders(pipe: Any) -> tuple[list[Any], list[Any]]:
        """The text encoder and its tokenizer."""
        return [pipe.text_encoder], [pipe.tokenizer]

    @staticmethod
    def embed_times(
        net: Any,
        timesteps: Tensor,
        text: Embedding,
        size: tuple[int, int],  # noqa: ARG004 (families that are conditioned on it need it)
    ) -> Tensor:
        """Time embeddings of all steps, the same for every branch."""
        tokens = text["tokens"]
        times: Tensor = net.time_embedding(net.time_proj(timesteps).to(tokens.dtype))
        return times[None].expand(len(tokens), -1, -1)

    @staticmethod
    def ip_targets(unet: Any) -> Mapping[IpTarget, BlockScales]:
        """InstantStyle's blocks for this family (its repository, `infer_style_sd15.py`).

        The first upsampling block with attention carries the style; the last such downsampling
        block and the middle one carry the layout.
        """
        style = {_with_attention(unet.up_blocks)[0]: 1.0}
        layout = {_with_attention(unet.down_blocks)[-1]: 1.0}
        return {
            IpTarget.STYLE: BlockScales(up=style),
            IpTarget.LAYOUT: BlockScales(down=layout, mid=1.0),
            IpTarget.STYLE_LAYOUT: BlockScales(up=style, down=layout, mid=1.0),
        }

    def text_layout(self, chunks: int) -> Layout:
        """See `base.Model`."""
        tokens = chunks * self.pipe.tokenizer.model_max_length
        return {"tokens": (1, tokens, self.unet.config.cross_attention_dim)}

    @property
    def zero_negative(self) -> bool:
        """See `base.Model`; the empty text is encoded, as the plain pipeline does."""
        return False

    @property
    def max_clip_skip(self) -> int:
        """See `base.Model`."""
        return int(self.pipe.text_encoder.config.num_hidden_layers)

    def encode_ids(self, ids: Sequence[Tensor], clip_skip: int) -> Embedding:
        """See `UNetModel`; the layer that diffusers' `encode_prompt` takes."""
        encoder = self.pipe.text_encoder
        out = encoder(ids[0], output_hidden_states=True)
        if not clip_skip:
            return {"tokens": out.last_hidden_state}
        inner = getattr(encoder, "text_model", encoder)
        return {"tokens": inner.final_layer_norm(out.hidden_states[-(clip_skip + 1)])}

    def encode_plain(self, text: str, clip_skip: int) -> Embedding:
        """See `UNetModel`; diffusers' own `encode_prompt`."""
        tokens, _ = self.pipe.encode_prompt(
            text,
            self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip or None,
        )
        return {"tokens": tokens}


def _with_attention(blocks: Any) -> list[str]:
    """The names of the blocks that have transformers."""
    return [f"block_{n}" for n, block in enumerate(blocks) if hasattr(block, "attentions")]


load = SD15.load
