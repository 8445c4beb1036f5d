"""Embeddings kept by content, in the process and in a shared store."""

import pickle
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from service.core.param_types import Crop
from workers.engine import cache
from workers.engine.cache import EmbeddingCache
from workers.engine.models import hub

LAYOUT = {"embedding": (3,)}


class Store(dict[str, bytes]):
    """A shared store."""

    def put(self, fingerprint: str, data: bytes) -> None:
        self[fingerprint] = data


def embedding(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"embedding": torch.full((3,), value)}


def test_an_entry_comes_back_from_the_process_then_from_the_store() -> None:
    """What one worker has encoded, another one finds."""
    store, heard = Store(), []
    first = EmbeddingCache(8, store, heard.append)
    assert first.get("a", LAYOUT, torch.float32) is None
    first.put("a", embedding())
    first.share("a", embedding())
    assert first.get("a", LAYOUT, torch.float32) is not None
    second = EmbeddingCache(8, store, heard.append)
    found = second.get("a", LAYOUT, torch.float32)
    assert found is not None
    assert torch.equal(found["embedding"], torch.ones(3))
    assert second.get("a", LAYOUT, torch.float32) is not None
    assert heard == ["miss", "process", "store", "process"]


def test_the_entry_used_longest_ago_goes_first() -> None:
    """The cache keeps as many entries as it was told."""
    kept = EmbeddingCache(2, None)
    for key in "abc":
        kept.put(key, embedding())
        kept.get("a", LAYOUT, torch.float32)
    assert kept.peek("b") is None
    assert kept.peek("a") is not None
    assert kept.peek("c") is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        pickle.dumps(embedding()),
        cache.encode({"embedding": torch.ones(4)}),
        cache.encode({"other": torch.ones(3)}),
        cache.encode({"embedding": torch.ones(3, dtype=torch.float16)}),
        cache.encode({"embedding": torch.full((3,), torch.nan)}),
    ],
    ids=["empty", "nonsense", "pickle", "shape", "name", "dtype", "nan"],
)
def test_a_spoilt_entry_is_a_miss(data: bytes) -> None:
    """Nothing that the store gives back is believed unseen."""
    store = Store({"a": data})
    assert EmbeddingCache(8, store).get("a", LAYOUT, torch.float32) is None


def test_an_encoder_s_fingerprint_tells_its_tokenizer_and_configuration(tiny_model: Path) -> None:
    encoder = CLIPTextModel.from_pretrained(tiny_model / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    first = hub.fingerprint(encoder, tokenizers=(tokenizer,))
    assert hub.fingerprint(encoder) != first
    again = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer", pad_token="!")
    assert hub.fingerprint(encoder, tokenizers=(again,)) != first
    encoder.config.hidden_act = "relu"
    fresh = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    assert hub.fingerprint(encoder, tokenizers=(fresh,)) != first
    encoder.config.hidden_act = "gelu"
    encoder.config.name_or_path = "elsewhere"
    assert hub.fingerprint(encoder, tokenizers=(fresh,)) == first


def test_a_fingerprint_depends_on_pixels_encoder_crop_and_kind() -> None:
    """Anything that changes the embedding changes its name."""
    names = {
        cache.image_fingerprint("p", "e", Crop.CENTER, "base"),
        cache.image_fingerprint("q", "e", Crop.CENTER, "base"),
        cache.image_fingerprint("p", "f", Crop.CENTER, "base"),
        cache.image_fingerprint("p", "e", Crop.PAD, "base"),
        cache.image_fingerprint("p", "e", Crop.CENTER, "plus"),
        cache.text_fingerprint("p", "e"),
        cache.text_fingerprint("p", "e", ["a LoRA"]),
    }
    assert len(names) == 7
