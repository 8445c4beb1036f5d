"""A model family of a few lines: no UNet, no VAE, nothing in common with SDXL but the protocol.

Its denoiser moves every pixel towards one colour, which is the mean of the text's colour and the
image prompts' colour.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional

from service.core.catalog import ModelEntry
from service.core.param_types import IpTarget
from workers.engine.attention import Context, Kernel
from workers.engine.models.prompts import Prompt


def colour_of(text: str) -> Tensor:
    """Three numbers of -1 to 1 for a text."""
    total = sum(text.encode()) + len(text)
    return torch.tensor([total % 7, total % 5, total % 3]) / 3 - 1


class ToyAdapter:
    """An image prompt is its mean colour."""

    kind = "colour"
    encoder_fingerprint = "toy"
    encoder_dtype = torch.float32
    embedding_shape = (3,)
    size = 8
    scales: Mapping[IpTarget, tuple[float]] = dict.fromkeys(IpTarget, (1.0,))

    def preprocess(self, picture: Image.Image) -> Tensor:
        pixels = np.asarray(picture.resize((8, 8)), dtype=np.float32) / 127.5 - 1
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))

    def unconditional(self) -> Tensor:
        return torch.zeros(1, 3)

    def kv(self, embeddings: Tensor) -> Tensor:
        return embeddings[:, None]


class Toy:
    """Latents of three channels, a quarter of the picture's size."""

    adapters: Mapping[str, ToyAdapter] = {"base": ToyAdapter()}
    controlnets: Mapping[str, object] = {}
    t2i_adapters: Mapping[str, object] = {}
    depth_estimator: None = None
    loras: Mapping[str, object] = {}
    text_fingerprint = "toy"
    device = torch.device("cpu")
    dtype = torch.float32
    latent_channels = 3
    input_channels = 3
    scale_factor = 4
    zero_negative = False
    max_clip_skip = 0
    networks = ()

    def __init__(self, name: str, entry: ModelEntry) -> None:
        self.name = name
        self.entry = entry
        self.scheduler_config = DDIMScheduler(clip_sample=False).config

    def text_layout(self, chunks: int) -> dict[str, tuple[int, ...]]:
        return {"colour": (1, 3)}

    def prompt(self, text: str) -> Prompt:
        return Prompt(text)

    def encode_text(self, prompt: Prompt, clip_skip: int) -> dict[str, Tensor]:
        return {"colour": colour_of(prompt.text)[None]}

    def text_kv(self, text: Mapping[str, Tensor]) -> Tensor:
        return text["colour"][:, None]

    def time_embeddings(
        self, timesteps: Tensor, text: Mapping[str, Tensor], size: tuple[int, int]
    ) -> Tensor:
        return (timesteps / 1000).expand(len(text["colour"]), -1)[..., None]

    def predict(
        self,
        sample: Tensor,
        emb: Tensor,
        context: Context,
        residuals: Sequence[Tensor] | None,
        features: Sequence[Tensor] | None,
    ) -> Tensor:
        target = context.text.mean(1)
        for image in context.images:
            bias = torch.zeros(image.kv.shape[:2]) if image.bias is None else image.bias
            weights = bias.softmax(1)[..., None]
            target = target + image.scale * (weights * image.kv).sum(1)
        return (sample - target[:, :, None, None] * (1 - emb)[:, :, None, None]).tanh()

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        latents = functional.avg_pool2d(pixels, 4)
        return latents, torch.zeros_like(latents)

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents, scale_factor=4.0)

    def decode_tiled(self, latents: Tensor, side: int) -> Tensor:
        return self.decode(latents)


def load(
    name: str,
    entry: ModelEntry,
    *,
    device: torch.device,
    kernel: Kernel,
    on_stage: Callable[[str], None],
) -> Toy:
    on_stage(f"loading {name}")
    return Toy(name, entry)
