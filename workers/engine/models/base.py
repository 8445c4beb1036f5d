"""What the engine needs of a model, whatever its family.

A family is a file beside this one with a loader; `FAMILIES` in `models/__init__.py` names them.
Rows, batches, caches and the step loop use these protocols only. A branch is the conditional or the
unconditional half of a guided row. Where a shape begins with `branches`, a job without guidance has
the conditional one only, and otherwise the unconditional one comes first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from service.core.catalog import ModelEntry
from service.core.param_types import IpTarget
from workers.engine.attention import Context, Kernel
from workers.engine.cache import Embedding, Layout
from workers.engine.models.prompts import Prompt


class ImageAdapter(Protocol):
    """One IP-Adapter with its image encoder."""

    @property
    def kind(self) -> str:
        """Which output of the encoder it reads; part of the cache's keys."""

    @property
    def encoder_fingerprint(self) -> str:
        """Identifies the encoder by its weights and configuration."""

    @property
    def encoder_dtype(self) -> torch.dtype:
        """The dtype of its embeddings."""

    @property
    def embedding_shape(self) -> tuple[int, ...]:
        """The shape of one image's encoder output."""

    @property
    def size(self) -> int:
        """Side of the square picture that the encoder takes, in pixels."""

    @property
    def scales(self) -> Mapping[IpTarget, tuple[float, ...]]:
        """What `ip_scale` is multiplied with in each cross-attention, by `ip_target`."""

    def preprocess(self, picture: Image) -> Tensor:
        """An RGB picture as the encoder takes it, `(1, 3, size, size)`, on the CPU."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Run the encoder over `(images, 3, size, size)`; `(images, *embedding_shape)`."""

    def unconditional(self) -> Tensor:
        """The encoder output that stands for no image, `(1, *embedding_shape)`."""

    def kv(self, embeddings: Tensor) -> Tensor:
        """K' and V' of every layer, `(images, tokens, width)`, from `(images, ...)`."""


class ControlNet(Protocol):
    """One ControlNet."""

    def text_kv(self, text: Embedding) -> Tensor:
        """K and V of the text for its own layers, `(branches, tokens, width)`."""

    def time_embeddings(self, timesteps: Tensor, text: Embedding, size: tuple[int, int]) -> Tensor:
        """As `Model.time_embeddings`, with its own weights."""

    def embed_map(self, picture: Tensor) -> Tensor:
        """A map, `(1, 3, height, width)` in 0 to 1, as `residuals` takes it."""

    def residuals(
        self, sample: Tensor, emb: Tensor, context: Context, hint: Tensor, scale: Tensor
    ) -> list[Tensor]:
        """Residuals for `sample`, one for each skip connection, the middle block's last.

        `hint` is what `embed_map` gives of each map, joined; `scale` is `(batch,)`.
        """

    def blank_hint(self, count: int, height: int, width: int) -> Tensor:
        """Zeros as `count` maps for latents of `height` x `width`, to compile with."""

    def blank_context(self, count: int) -> Context:
        """Zeros as `count` texts, to compile with."""


class T2IAdapter(Protocol):
    """One T2I-Adapter."""

    def preprocess(self, picture: Image, height: int, width: int) -> Tensor:
        """A map as the adapter takes it, on the CPU."""

    def features(self, picture: Tensor) -> list[Tensor]:
        """What is added to the network's blocks at each step, `(1, channels, h, w)` each."""


class MapPreprocessor(Protocol):
    """Makes control maps of pictures; safe from several threads."""

    def __call__(self, picture: Image) -> Image:
        """The map of an RGB picture, RGB of the same size."""


class LoadedLora(Protocol):
    """One LoRA."""

    @property
    def fingerprint(self) -> str:
        """Identifies its file."""

    @property
    def once(self) -> Mapping[nn.Module, Any]:
        """Updates (`lora.LowRank`) of layers that run once a job."""

    @property
    def each_step(self) -> Mapping[nn.Module, Any]:
        """Updates of layers that run at each step."""

    @property
    def changes_text(self) -> bool:
        """Whether it updates text encoders."""


class Model(Protocol):
    """One loaded model of `models.yaml` on its device."""

    name: str
    entry: ModelEntry
    device: torch.device
    dtype: torch.dtype
    adapters: Mapping[str, Any]
    """An `ImageAdapter` by name."""
    controlnets: Mapping[str, Any]
    """A `ControlNet` by name."""
    t2i_adapters: Mapping[str, Any]
    """A `T2IAdapter` by name."""
    depth_estimator: MapPreprocessor | None
    loras: Mapping[str, Any]
    """A `LoadedLora` by name."""
    text_fingerprint: str
    """Identifies text encoders and tokenizers by all that they make of a text."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    def input_channels(self) -> int:
        """Channels of what `predict` takes: of the latents, or with a mask and a masked picture."""

    @property
    def scale_factor(self) -> int:
        """Pixels of a side that one latent stands for."""

    @property
    def scheduler_config(self) -> Any:
        """The configuration that samplers are made from."""

    def text_layout(self, chunks: int) -> Layout:
        """Names and shapes of what `encode_text` returns for a prompt of so many chunks."""

    @property
    def zero_negative(self) -> bool:
        """Whether zeros stand for an empty negative prompt, instead of the encoded empty text."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """Everything that runs at each step."""

    @property
    def max_clip_skip(self) -> int:
        """Most layers that a text encoder can leave out."""

    def prompt(self, text: str) -> Prompt:
        """Read a text as `encode_text` takes it; safe from several threads."""

    def encode_text(self, prompt: Prompt, clip_skip: int) -> Embedding:
        """Encode one text without the last `clip_skip` layers; the first dimension is 1.

        `tokens`, if there are any, are `(1, tokens, dim)`, chunk after chunk.
        """

    def text_kv(self, text: Embedding) -> Tensor:
        """K and V of every layer, `(branches, tokens, width)`; see `attention.Context.text`."""

    def time_embeddings(self, timesteps: Tensor, text: Embedding, size: tuple[int, int]) -> Tensor:
        """What depends on the step alone, for all steps: `(branches, steps, width)`.

        `timesteps` is `(steps,)`, `size` (height, width) in pixels.
        """

    def predict(
        self,
        sample: Tensor,
        emb: Tensor,
        context: Context,
        residuals: Sequence[Tensor] | None,
        features: Sequence[Tensor] | None,
    ) -> Tensor:
        """The prediction for `sample`, `(batch, channels, h, w)`, of entries at steps of their own.

        `emb` is `(batch, width)`; `residuals` are those of ControlNets, `features` those of
        T2I-Adapters.
        """

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """A picture `(1, 3, height, width)` in -1 to 1 to latents: their mean and deviation."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `(1, channels, h, w)` to a picture `(1, 3, height, width)` in -1 to 1."""

    def decode_tiled(self, latents: Tensor, side: int) -> Tensor:
        """As `decode`, in tiles of `side` latents."""

    def blank_emb(self, count: int) -> Tensor:
        """Zeros as the time embeddings of `count` entries, to compile with."""

    def blank_context(self, count: int, image_tokens: int) -> Context:
        """Zeros as what `count` entries attend to, to compile with; 0 tokens: no image."""


class Loader(Protocol):
    """Loads a model of one family."""

    def __call__(
        self,
        name: str,
        entry: ModelEntry,
        *,
        device: torch.device,
        kernel: Kernel,
        on_stage: Callable[[str], None],
    ) -> Model:
        """Load and check a model: float16 on CUDA, float32 on a CPU.

        Raises `ConfigurationError` where files are missing or do not fit together.
        """
