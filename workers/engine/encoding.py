"""The encoders' part of a job: texts and image prompts to embeddings, on the device.

Called by the engine's thread between steps, for what no cache had. The texts go through
diffusers' own `encode_prompt`, the images as in its `encode_image`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.api import Observer
from workers.engine.cache import Embedding, EmbeddingCache
from workers.engine.device import to_device
from workers.engine.inputs import Inputs, TextInput
from workers.engine.loading import LoadedAdapter, LoadedModel


@dataclass(frozen=True, slots=True)
class Text:
    """One encoded text: `tokens` `(1, tokens, dim)` and `pooled` `(1, dim)`, on the device."""

    tokens: Tensor
    pooled: Tensor

    @classmethod
    def zeros(cls, like: "Text") -> "Text":
        """What SDXL takes for an absent negative prompt."""
        return cls(torch.zeros_like(like.tokens), torch.zeros_like(like.pooled))


@dataclass(frozen=True, slots=True)
class Encoded:
    """The embeddings of a job on the device.

    `images` are the encoder's outputs, `(images, ...)`, `None` without an image prompt; `fresh`
    are the ones that were made just now, by key, for the shared store.
    """

    positive: Text
    negative: Text
    images: Tensor | None
    fresh: tuple[tuple[EmbeddingCache, str, Embedding], ...]


class Encoders:
    """Runs text and image encoders of loaded models and fills the caches."""

    def __init__(
        self, *, images: EmbeddingCache, texts: EmbeddingCache, observer: Observer
    ) -> None:
        self._images = images
        self._texts = texts
        self._observer = observer

    def encode(self, model: LoadedModel, adapter: LoadedAdapter, inputs: Inputs) -> Encoded:
        """Embeddings of everything in `inputs`; only what it carries no embedding for is run."""
        fresh: list[tuple[EmbeddingCache, str, Embedding]] = []
        positive = self._text(model, inputs.positive, fresh)
        negative = (
            self._text(model, inputs.negative, fresh) if inputs.negative else Text.zeros(positive)
        )
        images = self._encode_images(model, adapter, inputs, fresh) if inputs.images else None
        return Encoded(positive, negative, images, tuple(fresh))

    def _text(
        self,
        model: LoadedModel,
        text: TextInput,
        fresh: list[tuple[EmbeddingCache, str, Embedding]],
    ) -> Text:
        # Another job with the same text may have been encoded since the inputs were gathered.
        found = text.embedding or self._texts.peek(text.key)
        if found is None:
            tokens, _, pooled, _ = model.pipe.encode_prompt(
                text.text, device=model.device, do_classifier_free_guidance=False
            )
            found = {"tokens": tokens.cpu(), "pooled": pooled.cpu()}
            self._texts.put(text.key, found)
            fresh.append((self._texts, text.key, found))
            return Text(tokens, pooled)
        return Text(*(to_device(found[name], model.device) for name in ("tokens", "pooled")))

    def _encode_images(
        self,
        model: LoadedModel,
        adapter: LoadedAdapter,
        inputs: Inputs,
        fresh: list[tuple[EmbeddingCache, str, Embedding]],
    ) -> Tensor:
        found = {
            image.key: image.embedding or self._images.peek(image.key) for image in inputs.images
        }
        missing = {
            image.key: image.pixels
            for image in inputs.images
            if found[image.key] is None and image.pixels is not None
        }
        # One at a time, so that an embedding does not depend on what else was asked for with it.
        for key, pixels in missing.items():
            made = adapter.encode(to_device(pixels, model.device))[0].cpu()
            self._observer.on_encoder_run()
            found[key] = embedding = {"embedding": made}
            self._images.put(key, embedding)
            fresh.append((self._images, key, embedding))
        parts = [_present(found[image.key])["embedding"] for image in inputs.images]
        return to_device(torch.stack(parts), model.device)


def _present(embedding: Embedding | None) -> Embedding:
    assert embedding is not None, "an image prompt has either pixels or an embedding"
    return embedding
