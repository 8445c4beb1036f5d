"""Image prompts: the paper's decoupled attention to an image, through an IP-Adapter."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from PIL import Image, ImageOps
from torch import Tensor

from service.core.errors import UnservableRequest
from service.core.params import Crop, GenerateRequest
from workers.engine.api import EngineJob, Observer
from workers.engine.attention import Context
from workers.engine.cache import Embedding, EmbeddingCache, image_fingerprint
from workers.engine.conditioning.base import (
    BatchEntry,
    Conditioning,
    Gathered,
    Preparation,
    state,
)
from workers.engine.device import to_device
from workers.engine.models.base import ImageAdapter, Model

PAD_COLOUR: Final = (122, 116, 104)
"""The mean colour of CLIP's training pictures: after CLIP's normalisation it is zero."""
LONGEST: Final = 8192
"""Side of the largest square that is padded to, in pixels: a strip of 65,535 by 600 pixels is
within the upload's limits, and its square would be 13 GB."""
WIDEST: Final = 16
"""Long side in short sides beyond which a strip is cut to its middle before CLIP enlarges it."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image prompt: its cached embedding, or else its pixels as the encoder takes them.

    `pixels` is `(1, 3, size, size)`; `weight` is relative to the other prompts' of the job.
    """

    key: str
    weight: float
    embedding: Embedding | None
    pixels: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class ImageState:
    """`kv` is `(branches, image tokens, width)` and `scale`, lambda, `(layers,)`.

    `bias` is `(image tokens,)`, or None where all image prompts weigh the same.
    """

    kv: Tensor
    bias: Tensor | None
    scale: Tensor


class ImagePrompts(Conditioning):
    """The image prompts of a job, which are one prompt together."""

    name = "image_prompts"

    def __init__(self, cache: EmbeddingCache, observer: Observer) -> None:
        self._cache = cache
        self._observer = observer
        self._unconditional: dict[ImageAdapter, Tensor] = {}

    def check(self, request: GenerateRequest, model: Model) -> None:
        """The adapter must be loaded."""
        if request.adapter not in model.adapters:
            raise UnservableRequest(f"`adapter` {request.adapter} is not served by this worker")

    def gather(self, job: EngineJob, model: Model) -> tuple[ImageInput, ...]:
        """Look up the embeddings; read and preprocess the images that have none."""
        adapter: ImageAdapter = model.adapters[job.request.adapter]
        return tuple(
            self._gather(job, index, adapter)
            for index, image in enumerate(job.request.images)
            if image.weight > 0
        )

    def prepare(self, job: Preparation, gathered: tuple[ImageInput, ...]) -> ImageState | None:
        """Encode what no cache had; K' and V' of every layer, lambda of every layer."""
        if not gathered:
            return None
        model = job.model
        adapter: ImageAdapter = model.adapters[job.request.adapter]
        conditional = adapter.kv(self._encode(job, adapter, gathered))
        tokens = conditional.shape[1]
        kv = conditional.flatten(0, 1)[None]
        if job.branches > 1:
            nothing = self._unconditional_kv(adapter)
            kv = torch.cat([nothing.repeat(1, len(gathered), 1), kv])
        return ImageState(
            kv=kv,
            bias=_bias([image.weight for image in gathered], tokens, model),
            scale=job.request.ip_scale
            * to_device(torch.tensor(adapter.scales), model.device, model.dtype),
        )

    def join(self, entries: Sequence[BatchEntry], context: Context) -> Context:
        """Put the images of different jobs side by side.

        Entries with fewer image tokens than others are padded behind a bias of minus infinity;
        those without an image prompt get zeros and lambda 0.
        """
        states: list[ImageState | None] = [state(entry, ImagePrompts) for entry in entries]
        counts = [0 if each is None else each.kv.shape[1] for each in states]
        longest = max(counts)
        if longest == 0:
            return context
        like = context.text
        layers = next(len(each.scale) for each in states if each is not None)
        image = like.new_zeros(len(entries), longest, like.shape[2])
        scale = like.new_zeros(len(entries), layers)
        bias = like.new_full((len(entries), longest), -torch.inf)
        rows = zip(entries, states, counts, strict=True)
        for position, (entry, own, count) in enumerate(rows):
            bias[position, : max(count, 1)] = 0
            if own is None:
                continue
            image[position, :count] = own.kv[entry.index]
            scale[position] = own.scale
            if own.bias is not None:
                bias[position, :count] = own.bias
        weighted = any(each is not None and each.bias is not None for each in states)
        needs_bias = weighted or any(count not in (0, longest) for count in counts)
        return replace(context, image=image, scale=scale, bias=bias if needs_bias else None)

    def _gather(self, job: EngineJob, index: int, adapter: ImageAdapter) -> ImageInput:
        request = job.request
        prompt = request.images[index]
        key = image_fingerprint(
            prompt.pixels_sha256, adapter.encoder_fingerprint, request.crop, adapter.kind
        )
        layout = {"embedding": adapter.embedding_shape}
        found = self._cache.get(key, layout, adapter.encoder_dtype)
        if found is not None:
            return ImageInput(key, prompt.weight, found, None)
        picture = square(job.read(prompt.key), request.crop, adapter.size)
        return ImageInput(key, prompt.weight, None, adapter.preprocess(picture))

    def _encode(
        self, job: Preparation, adapter: ImageAdapter, images: Sequence[ImageInput]
    ) -> Tensor:
        """The encoder's outputs, `(images, ...)`, on the device."""
        found = {image.key: image.embedding or self._cache.peek(image.key) for image in images}
        missing = {
            image.key: image.pixels
            for image in images
            if found[image.key] is None and image.pixels is not None
        }
        # One at a time, so that an embedding does not depend on what else was asked for with it.
        for key, pixels in missing.items():
            made = adapter.encode(to_device(pixels, job.model.device))[0].cpu()
            self._observer.on_encoder_run()
            found[key] = embedding = {"embedding": made}
            self._cache.put(key, embedding)
            job.fresh.append((self._cache, key, embedding))
        parts = [_present(found[image.key])["embedding"] for image in images]
        return to_device(torch.stack(parts), job.model.device)

    def _unconditional_kv(self, adapter: ImageAdapter) -> Tensor:
        if adapter not in self._unconditional:
            self._unconditional[adapter] = adapter.kv(adapter.unconditional())
        return self._unconditional[adapter]


def cache_hit(gathered: Gathered) -> bool:
    """Whether no image prompt of a job had to be encoded."""
    return all(image.embedding is not None for image in gathered[ImagePrompts.name])


def square(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """Apply `crop` to an RGB picture; `size` is the side the encoder takes, in pixels.

    `center` is left to CLIP's own preprocessing, which scales the shorter side and cuts the middle
    out; a very long strip is cut to its middle first. `pad` puts the picture in
    the middle of a square of CLIP's mean colour. `resize` squashes it to the square, so that all of
    it is seen and its proportions are lost.
    """
    if crop is Crop.PAD and image.width != image.height:
        if max(image.size) > LONGEST:
            image = ImageOps.contain(image, (LONGEST, LONGEST), Image.Resampling.BICUBIC)
        side = max(image.size)
        padded = Image.new("RGB", (side, side), PAD_COLOUR)
        padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return padded
    if crop is Crop.RESIZE and image.width != image.height:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if crop is Crop.CENTER:
        reach = WIDEST * min(image.size)
        left, top = (max(0, (length - reach) // 2) for length in image.size)
        if left or top:
            return image.crop((left, top, image.width - left, image.height - top))
    return image


def _bias(weights: Sequence[float], tokens: int, model: Model) -> Tensor | None:
    if len(set(weights)) <= 1:
        return None
    relative = torch.tensor(weights) / max(weights)
    return to_device(relative.log().repeat_interleave(tokens), model.device, model.dtype)


def _present(embedding: Embedding | None) -> Embedding:
    assert embedding is not None, "an image prompt has either pixels or an embedding"
    return embedding
