"""Stable Diffusion 1.5 and its custom models: one text encoder, no added conditions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import StableDiffusionPipeline
from torch import Tensor

from service.core.errors import ConfigurationError
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

    @property
    def text_layout(self) -> Layout:
        """See `base.Model`."""
        tokens = self.pipe.tokenizer.model_max_length
        return {"tokens": (1, tokens, self.unet.config.cross_attention_dim)}

    @property
    def zero_negative(self) -> bool:
        """See `base.Model`; the empty text is encoded, as the plain pipeline does."""
        return False

    def encode_text(self, text: str) -> Embedding:
        """See `base.Model`; diffusers' own `encode_prompt`."""
        tokens, _ = self.pipe.encode_prompt(
            text, self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"tokens": tokens}


load = SD15.load
