"""Where a model's files are: local folders, or the hub's cache with its offline switch.

Turns a `Source` of `models.yaml` into what diffusers' and transformers' loaders take.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from service.core.catalog import Adapter, Source
from service.core.errors import ConfigurationError

_IGNORED: Final = frozenset({"_name_or_path", "transformers_version"})
"""Keys of a configuration that change nothing of the output."""


def name_of(source: Source, *parts: str) -> str:
    """How messages call a file or folder of a source."""
    start = source.location if source.path is not None else f"{source.repo}@{source.revision}"
    return str(PurePosixPath(start, *(part for part in parts if part)))


def check_folder(source: Source, what: str) -> None:
    """Raise `ConfigurationError` where a source is a local folder that is not there."""
    if source.path is not None and not source.path.is_dir():
        raise ConfigurationError(f"models.yaml names {source.path} for {what}: no such folder")


def find(source: Source, *parts: str) -> Path:
    """Find one file of a source, downloading it where the hub may be asked.

    Raises `ConfigurationError` with the file's name where it is not there.
    """
    name = name_of(source, *parts)
    if source.path is not None:
        path = source.path.joinpath(*(part for part in parts if part))
        if not path.is_file():
            raise ConfigurationError(f"{name} does not exist")
        return path
    try:
        return Path(
            hf_hub_download(
                str(source.repo),
                str(PurePosixPath(*(part for part in parts if part))),
                revision=source.revision,
            )
        )
    except LocalEntryNotFoundError as error:
        raise ConfigurationError(
            f"{name} is not in the hub's cache and the hub was not reached"
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigurationError(f"{name} was not found on the hub") from error


def loader_arguments(source: Source) -> dict[str, Any]:
    """Keyword arguments for `from_pretrained`: revision, subfolder, variant; safetensors only."""
    arguments: dict[str, Any] = {"use_safetensors": True}
    for key in ("revision", "subfolder", "variant"):
        value = getattr(source, key)
        if value is not None:
            arguments[key] = value
    return arguments


def load(kind: Any, source: Source, dtype: torch.dtype) -> Any:
    """Load one network of class `kind`; see `from_pretrained`.

    Raises `ConfigurationError` also where its file lacks tensors.
    """
    arguments = loader_arguments(source) | {"dtype": dtype, "output_loading_info": True}
    network, info = from_pretrained(kind, source, arguments)
    missing = sorted(_keys(info, "missing_keys"))
    if missing:
        name = name_of(source, source.subfolder or "")
        raise ConfigurationError(
            f"{kind.__name__} {name} lacks {len(missing)} tensors, among them {missing[0]}: the "
            "file is damaged or of another kind"
        )
    return network


def _keys(info: Any, name: str) -> Iterable[str]:
    """Names of tensors in what a loader of diffusers (a dict) or transformers reports."""
    found = info.get(name, ()) if isinstance(info, dict) else getattr(info, name, ())
    return [str(key) for key in found or ()]


def from_pretrained(kind: Any, source: Source, arguments: dict[str, Any]) -> Any:
    """Call `kind.from_pretrained`. Raises `ConfigurationError` with the source's name."""
    try:
        return kind.from_pretrained(source.location, **arguments)
    except (OSError, ValueError, KeyError) as error:
        name = name_of(source, source.subfolder or "")
        raise ConfigurationError(
            f"{kind.__name__} could not be loaded from {name}: {error}"
        ) from error


def encoder_source(adapter: Adapter) -> Source:
    """The image encoder of an adapter as a source of its own (the rule of diffusers' loader)."""
    folder = adapter.image_encoder
    if "/" not in folder and adapter.subfolder:
        folder = f"{adapter.subfolder}/{folder}"
    return Source(path=adapter.path, repo=adapter.repo, revision=adapter.revision, subfolder=folder)


def fingerprint(*encoders: PreTrainedModel, tokenizers: Sequence[Any] = ()) -> str:
    """The SHA-256 of all that loaded encoders and their tokenizers make of their inputs, hex.

    Weights and their dtypes, configurations, vocabularies and special tokens; not where they lie.
    """
    digest = hashlib.sha256()
    for tokenizer in tokenizers:
        rules = tokenizer.backend_tokenizer.to_str()
        rest = [tokenizer.special_tokens_map, tokenizer.model_max_length]
        digest.update(json.dumps([rules, *rest], sort_keys=True, default=str).encode())
    for module in encoders:
        config = module.config.to_dict()
        kept = {name: value for name, value in config.items() if name not in _IGNORED}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
        for name, weight in sorted(module.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            digest.update(weight.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
