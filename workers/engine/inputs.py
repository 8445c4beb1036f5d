"""What a job needs before it can take a step, brought to hand without the GPU.

Cached embeddings are looked up, uploads are read and preprocessed where none serves. It runs on
threads of its own beside the engine's; it runs no network of weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.core.errors import UnservableRequest
from service.core.params import GenerateRequest
from workers.engine import crop
from workers.engine.api import EngineJob
from workers.engine.cache import Embedding, EmbeddingCache, image_fingerprint, text_fingerprint
from workers.engine.loading import LoadedAdapter, LoadedModel


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image prompt: its cached embedding, or else its pixels as the encoder takes them.

    `pixels` is `(1, 3, size, size)`; `weight` counts beside the other prompts' of the job.
    """

    key: str
    weight: float
    embedding: Embedding | None
    pixels: Tensor | None


@dataclass(frozen=True, slots=True)
class TextInput:
    """One text and its cached embedding; None where it must be encoded."""

    key: str
    text: str
    embedding: Embedding | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a job.

    `negative` is None without guidance and where the negative prompt is empty and the model
    takes zeros for it. `control` is the map, `(1, 3, height, width)`, 0 to 1.
    """

    positive: TextInput
    negative: TextInput | None
    images: tuple[ImageInput, ...]
    control: Tensor | None

    @property
    def image_cache_hit(self) -> bool:
        """Whether no image prompt has to be encoded."""
        return all(image.embedding is not None for image in self.images)


def gather(
    job: EngineJob, model: LoadedModel, *, images: EmbeddingCache, texts: EmbeddingCache
) -> Inputs:
    """Look up or read everything that `job` needs.

    Raises `UnservableRequest` for an adapter or ControlNet that the model does not have, and
    whatever `job.read` raises.
    """
    request = job.request
    adapter = model.adapters.get(request.adapter)
    if adapter is None:
        raise UnservableRequest(f"`adapter` {request.adapter} is not served by this worker")
    zeros = not request.negative_prompt and model.pipe.config.force_zeros_for_empty_prompt
    negative = None
    if request.guided and not zeros:
        negative = _text(request.negative_prompt, model, texts)
    return Inputs(
        positive=_text(request.prompt, model, texts),
        negative=negative,
        images=tuple(
            _image(job, index, adapter, images)
            for index, image in enumerate(request.images)
            if image.weight > 0
        ),
        control=_control(job, model),
    )


def _text(text: str, model: LoadedModel, cache: EmbeddingCache) -> TextInput:
    key = text_fingerprint(text, model.text_fingerprint)
    pipe = model.pipe
    tokens = pipe.tokenizer.model_max_length
    layout = {
        "tokens": (1, tokens, model.unet.config.cross_attention_dim),
        "pooled": (1, pipe.text_encoder_2.config.projection_dim),
    }
    return TextInput(key, text, cache.get(key, layout, model.dtype))


def _image(job: EngineJob, index: int, adapter: LoadedAdapter, cache: EmbeddingCache) -> ImageInput:
    request = job.request
    prompt = request.images[index]
    encoder = adapter.encoder
    key = image_fingerprint(prompt.pixels_sha256, encoder.fingerprint, request.crop, adapter.kind)
    found = cache.get(key, {"embedding": adapter.embedding_shape}, encoder.model.dtype)
    if found is not None:
        return ImageInput(key, prompt.weight, found, None)
    picture = crop.square(job.read(prompt.key), request.crop, encoder.size)
    pixels: Tensor = encoder.processor(picture, return_tensors="pt").pixel_values
    return ImageInput(key, prompt.weight, None, pixels)


def _control(job: EngineJob, model: LoadedModel) -> Tensor | None:
    request: GenerateRequest = job.request
    if request.control is None:
        return None
    if request.control.type not in model.controlnets:
        raise UnservableRequest(f"`control_type` {request.control.type} is not served")
    processor = model.control_processor
    picture: Tensor = processor.preprocess(
        job.read(request.control.key), height=request.height, width=request.width
    )
    return picture.to(torch.float32)
