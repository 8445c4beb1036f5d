"""Embeddings kept by content: in the process, and behind it in a store that workers share.

A hit runs no encoder. Entries are stored as safetensors, never as pickles, and are checked when
they are read back.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from service.core.param_types import Crop
from workers.engine.api import EmbeddingStore

Embedding = Mapping[str, Tensor]
"""One content's tensors by name; in the cache they are on the CPU."""
Layout = Mapping[str, tuple[int, ...]]
"""The names and shapes that an embedding must have."""
Level = Literal["process", "store", "miss"]

_VERSION: Final = "2"
"""Changes when the way from content to embedding does, so that old entries are never read."""


def image_fingerprint(pixels_sha256: str, encoder: str, crop: Crop, kind: str) -> str:
    """Name an image embedding by all that it depends on (hex SHA-256).

    `encoder` is the encoder's own fingerprint, `kind` which of its outputs is meant.
    """
    return _digest("image", pixels_sha256, encoder, crop.value, kind)


def text_fingerprint(text: str, encoders: str, variant: Sequence[str] = ()) -> str:
    """Name a text embedding; `encoders` is the fingerprint of text encoders and tokenizers.

    `variant` tells how the encoders were changed for it.
    """
    return _digest("text", encoders, *variant, text)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join((_VERSION, *parts)).encode()).hexdigest()


class EmbeddingCache:
    """Embeddings by fingerprint in two levels: the `entries` used last here, and `store`.

    `on_lookup` is called with the level at which each one was found. Safe from several threads.
    """

    def __init__(
        self,
        entries: int,
        store: EmbeddingStore | None,
        on_lookup: Callable[[Level], None] | None = None,
    ) -> None:
        self._entries = entries
        self._store = store
        self._on_lookup = on_lookup or (lambda _level: None)
        self._values: OrderedDict[str, Embedding] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, layout: Layout, dtype: torch.dtype) -> Embedding | None:
        """The embedding under `key`; one of another layout or dtype is ignored."""
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
        level: Level = "process"
        if found is None:
            data = self._store.get(key) if self._store else None
            found = decode(data, layout, dtype) if data is not None else None
            level = "miss" if found is None else "store"
            if found is not None:
                self.put(key, found)
        self._on_lookup(level)
        return found

    def peek(self, key: str) -> Embedding | None:
        """The embedding under `key` in the process, without counting as a look-up."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: str, embedding: Embedding) -> None:
        """Keep an embedding in the process; the least recently used one is dropped."""
        with self._lock:
            self._values[key] = embedding
            self._values.move_to_end(key)
            while len(self._values) > self._entries:
                self._values.popitem(last=False)

    def share(self, key: str, embedding: Embedding) -> None:
        """Put an embedding into the shared store; may wait for a network."""
        if self._store is not None:
            self._store.put(key, encode(embedding))


def encode(embedding: Embedding) -> bytes:
    """One embedding as safetensors bytes."""
    return safetensors.torch.save({name: part.contiguous() for name, part in embedding.items()})


def decode(data: bytes, layout: Layout, dtype: torch.dtype) -> Embedding | None:
    """Read safetensors bytes back; None where they are not a finite embedding of this layout."""
    try:
        embedding = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError):
        return None
    if {name: tuple(part.shape) for name, part in embedding.items()} != dict(layout):
        return None
    if any(part.dtype != dtype or not torch.isfinite(part).all() for part in embedding.values()):
        return None
    return embedding
