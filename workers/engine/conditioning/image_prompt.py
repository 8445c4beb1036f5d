"""Image prompts: the paper's decoupled attention to an image, through an IP-Adapter."""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Final

import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image, ImageOps
from torch import Tensor

from service.core.errors import UnservableRequest
from service.core.param_types import Crop, StoredUpload
from service.core.params import GenerateRequest
from workers.engine.api import EngineJob, Observer
from workers.engine.attention import Context, ImageContext
from workers.engine.cache import Embedding, EmbeddingCache, image_fingerprint
from workers.engine.conditioning.base import (
    CONDITIONAL,
    BatchEntry,
    Conditioning,
    Gathered,
    Preparation,
    state,
)
from workers.engine.device import to_device
from workers.engine.models.base import ImageAdapter, Model

LEVELS: Final = 4
"""Resolutions of a UNet's blocks, each half of the one before."""
PAD_COLOUR: Final = (122, 116, 104)
"""The mean colour of CLIP's training pictures: after CLIP's normalisation it is zero."""
LONGEST: Final = 2048
"""Side of the largest square that is padded to, in pixels: the square of a flat picture of 8192 by
4800 pixels would be 201 MB, that of a strip of 65,535 by 600 pixels 13 GB."""
WIDEST: Final = 16
"""Long side in short sides beyond which only the middle of a strip is scaled as CLIP scales it."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image for one adapter: its cached embedding, or else its pixels for the encoder.

    `pixels` is `(1, 3, size, size)`; `weight` is relative to the other images of the adapter;
    `mask` is `(1, 1, height, width)` in 0 to 1, where it acts.
    """

    key: str
    weight: float
    embedding: Embedding | None
    pixels: Tensor | None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AdapterInputs:
    """The image prompts that one adapter reads, and the negative ones."""

    adapter: str
    images: tuple[ImageInput, ...]
    negatives: tuple[ImageInput, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ImageSegment:
    """Image prompts that are attended to with one softmax.

    `kv` is `(image tokens, width)` for each branch, and `scale`, lambda, `(layers,)`. `bias` is
    `(image tokens,)` for the conditional branch, or None where all images weigh the same. `masks`
    are `(queries, 1, 1)` by number of queries, or None where the images act everywhere.
    """

    kv: tuple[Tensor, ...]
    bias: Tensor | None
    scale: Tensor
    masks: Mapping[int, Tensor] | None


@dataclass(frozen=True, slots=True, eq=False)
class ImageState:
    """The segments of a job; `active` tells for each step whether they act."""

    segments: tuple[ImageSegment, ...]
    active: tuple[bool, ...]


class ImagePrompts(Conditioning):
    """The image prompts of a job: those of one adapter are one prompt, adapters act side by side.

    An image with a mask is attended to by itself, as in diffusers' attention processors.
    """

    name = "image_prompts"

    def __init__(self, cache: EmbeddingCache, observer: Observer) -> None:
        self._cache = cache
        self._observer = observer
        self._unconditional: dict[ImageAdapter, Tensor] = {}

    def check(self, request: GenerateRequest, model: Model) -> None:
        """The adapters must be loaded."""
        for adapter in request.ip_scales:
            if adapter not in model.adapters:
                field = "image_adapter" if request.image_adapter else "adapter"
                raise UnservableRequest(f"`{field}` {adapter} is not served by this worker")

    def gather(self, job: EngineJob, model: Model) -> tuple[AdapterInputs, ...]:
        """Look up the embeddings; read and preprocess the images that have none."""
        request = job.request
        negatives = request.negative_image if request.guided else ()
        gathered = []
        for name in request.ip_scales:
            adapter: ImageAdapter = model.adapters[name]
            images = tuple(
                replace(
                    self._gather(job, image, adapter, image.weight),
                    mask=None if image.mask is None else _mask(job, image.mask, model),
                )
                for image in request.images
                if image.adapter == name and image.weight > 0
            )
            if images:
                without = tuple(self._gather(job, image, adapter) for image in negatives)
                gathered.append(AdapterInputs(name, images, without))
        return tuple(gathered)

    def prepare(self, job: Preparation, gathered: tuple[AdapterInputs, ...]) -> ImageState | None:
        """Encode what no cache had; K' and V' of every layer, lambda of every layer."""
        request = job.request
        segments = [segment for inputs in gathered for segment in self._segments(job, inputs)]
        if not segments:
            return None
        return ImageState(tuple(segments), job.window(request.ip_start, request.ip_end, "ip_start"))

    def key(self, entry: BatchEntry) -> Hashable:
        """Whether the image prompts act at this step."""
        own: ImageState | None = state(entry, ImagePrompts)
        return own is not None and own.active[entry.step]

    def join(self, entries: Sequence[BatchEntry], context: Context) -> Context:
        """Put the images of different jobs next to each other, segment by segment."""
        columns = zip_longest(*(_segments_of(entry) for entry in entries))
        images = tuple(_join(entries, column, context.text) for column in columns)
        return replace(context, images=images)

    def _segments(self, job: Preparation, inputs: AdapterInputs) -> list[ImageSegment]:
        request, model = job.request, job.model
        adapter: ImageAdapter = model.adapters[inputs.adapter]
        scales = torch.tensor(adapter.scales[request.ip_target])
        scale = request.ip_scales[inputs.adapter] * to_device(scales, model.device, model.dtype)
        kv = adapter.kv(self._encode(job, adapter, inputs.images))
        nothing = self._unconditional_kv(job, adapter, inputs.negatives)
        weights = [image.weight for image in inputs.images]
        if all(image.mask is None for image in inputs.images):
            bias = _bias(weights, kv.shape[1], model)
            return [_segment(job, kv, nothing, bias, scale, None)]
        if any(image.mask is not None and not image.mask.any() for image in inputs.images):
            job.warn(
                "mask-without-white",
                "an `image_mask` is white nowhere, so its image prompt has no effect",
            )
        strongest = max(weights)
        return [
            _segment(job, kv[index : index + 1], nothing, None, scale * (weight / strongest), mask)
            for index, (weight, mask) in enumerate(
                (image.weight, image.mask) for image in inputs.images
            )
        ]

    def _gather(
        self, job: EngineJob, image: StoredUpload, adapter: ImageAdapter, weight: float = 1.0
    ) -> ImageInput:
        request = job.request
        key = image_fingerprint(
            image.pixels_sha256, adapter.encoder_fingerprint, request.crop, adapter.kind
        )
        layout = {"embedding": adapter.embedding_shape}
        found = self._cache.get(key, layout, adapter.encoder_dtype)
        if found is not None:
            return ImageInput(key, weight, found, None)
        picture = square(job.read(image.key), request.crop, adapter.size)
        return ImageInput(key, weight, None, adapter.preprocess(picture))

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

    def _unconditional_kv(
        self, job: Preparation, adapter: ImageAdapter, negatives: Sequence[ImageInput]
    ) -> Tensor:
        """K' and V' of the negative images, or of no image: `(images, tokens, width)`."""
        if negatives:
            return adapter.kv(self._encode(job, adapter, negatives))
        if adapter not in self._unconditional:
            self._unconditional[adapter] = adapter.kv(adapter.unconditional())
        return self._unconditional[adapter]


def cache_hit(gathered: Gathered) -> bool:
    """Whether no image prompt of a job had to be encoded."""
    adapters: tuple[AdapterInputs, ...] = gathered[ImagePrompts.name]
    images = [image for inputs in adapters for image in (*inputs.images, *inputs.negatives)]
    return all(image.embedding is not None for image in images)


def _segments_of(entry: BatchEntry) -> tuple[ImageSegment, ...]:
    own: ImageState | None = state(entry, ImagePrompts)
    return own.segments if own is not None and own.active[entry.step] else ()


def _segment(
    job: Preparation,
    kv: Tensor,
    nothing: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    mask: Tensor | None,
) -> ImageSegment:
    """`kv` and `nothing` are `(images, tokens, width)` of the two branches."""
    branches = [kv.flatten(0, 1)]
    if job.branches > 1:
        # No image stands for each of the images; negative ones stand for themselves.
        times = len(kv) if len(nothing) == 1 else 1
        branches.insert(0, nothing.repeat(times, 1, 1).flatten(0, 1))
    masks = None if mask is None else _downsampled(mask, job)
    return ImageSegment(tuple(branches), bias, scale, masks)


def _join(
    entries: Sequence[BatchEntry], segments: Sequence[ImageSegment | None], like: Tensor
) -> ImageContext:
    """One segment of each entry.

    Entries with fewer image tokens than others are padded behind a bias of minus infinity; those
    without a segment get zeros and lambda 0.
    """
    counts = [
        0 if own is None else len(own.kv[entry.index])
        for entry, own in zip(entries, segments, strict=True)
    ]
    longest = max(counts)
    layers = next(len(own.scale) for own in segments if own is not None)
    kv = like.new_zeros(len(entries), longest, like.shape[2])
    scale = like.new_zeros(len(entries), layers)
    bias = like.new_full((len(entries), longest), -torch.inf)
    needs_bias = any(count not in (0, longest) for count in counts)
    rows = zip(entries, segments, counts, strict=True)
    for position, (entry, own, count) in enumerate(rows):
        bias[position, : max(count, 1)] = 0
        if own is None:
            continue
        kv[position, :count] = own.kv[entry.index]
        scale[position] = own.scale
        if own.bias is not None and entry.branch == CONDITIONAL:
            bias[position, :count] = own.bias
            needs_bias = True
    return ImageContext(kv, scale, bias if needs_bias else None, _join_masks(segments))


def _join_masks(segments: Sequence[ImageSegment | None]) -> Mapping[int, Tensor] | None:
    """The masks of each entry, `(batch, queries, 1, 1)`; ones for entries without."""
    masks = [None if own is None else own.masks for own in segments]
    sizes = next((one for one in masks if one is not None), None)
    if sizes is None:
        return None
    return {
        queries: torch.stack(
            [torch.ones_like(like) if one is None else one[queries] for one in masks]
        )
        for queries, like in sizes.items()
    }


def _mask(job: EngineJob, upload: StoredUpload, model: Model) -> Tensor:
    """A mask of the picture's size, `(1, 1, height, width)`, white is 1."""
    processor = IPAdapterMaskProcessor(vae_scale_factor=model.scale_factor)
    request = job.request
    mask: Tensor = processor.preprocess(
        job.read(upload.key), height=request.height, width=request.width
    )
    return mask


def _downsampled(mask: Tensor, job: Preparation) -> Mapping[int, Tensor]:
    """The mask at every level of the network, `(queries, 1, 1)` by number of queries."""
    height, width = (side // job.model.scale_factor for side in job.size)
    masks = {}
    for _ in range(LEVELS):
        queries = height * width
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an aspect ratio that is off by rounding
            small = IPAdapterMaskProcessor.downsample(mask[0], 1, queries, 1)
        masks[queries] = to_device(small[0, :, :, None], job.model.device, job.model.dtype)
        height, width = -(-height // 2), -(-width // 2)
    return masks


def square(image: Image.Image, crop: Crop, size: int) -> Image.Image:
    """Apply `crop` to an RGB picture; `size` is the side the encoder takes, in pixels.

    `center` is left to CLIP's own preprocessing, which scales the shorter side and cuts the middle
    out; a large picture is scaled here in the same way, since CLIP's preprocessing takes three
    further copies of what it is given, and of a very long strip the middle alone. `pad` puts
    the picture in the middle of a square of CLIP's mean colour. `resize` squashes it to the square,
    so that all of it is seen and its proportions are lost.
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
    if crop is Crop.CENTER and max(image.size) > WIDEST * min(image.size):
        return _middle(image, size)
    if crop is Crop.CENTER and max(image.size) > LONGEST:
        return image.resize(_scaled(image, size), Image.Resampling.BICUBIC)
    return image


def _scaled(image: Image.Image, size: int) -> tuple[int, int]:
    """The size to which CLIP's preprocessing scales a picture: the shorter side becomes `size`."""
    width, height = (size * length // min(image.size) for length in image.size)
    return width, height


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture whose shorter side is scaled to `size`, and nothing else.

    Its values are those of scaling all of it and cutting then, but for single ones that are off by
    one or two: Pillow rounds the edges of a box to single precision.
    """
    width, height = image.size
    scaled = _scaled(image, size)
    left, top = ((whole - size) // 2 for whole in scaled)
    across, down = width / scaled[0], height / scaled[1]
    # Two passes in the order in which Pillow scales all of a picture.
    columns = (left * across, 0, min((left + size) * across, width), height)
    middle = image.resize((size, height), Image.Resampling.BICUBIC, box=columns)
    rows = (0, top * down, size, min((top + size) * down, height))
    return middle.resize((size, size), Image.Resampling.BICUBIC, box=rows)


def _bias(weights: Sequence[float], tokens: int, model: Model) -> Tensor | None:
    if len(set(weights)) <= 1:
        return None
    relative = torch.tensor(weights) / max(weights)
    return to_device(relative.log().repeat_interleave(tokens), model.device, model.dtype)


def _present(embedding: Embedding | None) -> Embedding:
    assert embedding is not None, "an image prompt has either pixels or an embedding"
    return embedding
