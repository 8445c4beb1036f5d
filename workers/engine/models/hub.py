"""Where a model's files are: local folders, or the hub's cache with its offline switch.

Turns a `Source` of `models.yaml` into what diffusers' and transformers' loaders take.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel

from service.core.catalog import Adapter, Source
from service.core.errors import ConfigurationError

NAMED: Final = 4
"""Tensors of each sort that a message names."""
_SERIAL: Final = 32_000
"""Values that PyTorch adds on one thread; waking the others took longer than adding."""
LONGEST_CAUSE: Final = 300
"""Characters of a library's message that are repeated."""
_POSITION_IDS: Final = re.compile(r"(^|\.)position_ids$")
"""What older versions of transformers saved and newer ones compute."""
_IGNORED_TENSORS: Final = {
    "CLIPVisionModelWithProjection": re.compile(
        rf"{_POSITION_IDS.pattern}|^text_model\.|^text_projection\.|^logit_scale$"
    ),
}
"""Tensors that may be left over, by class: an image encoder's file may hold all of its CLIP."""
_IGNORED: Final = frozenset({"_name_or_path", "transformers_version"})
"""Keys of a configuration that change nothing of the output."""


def name_of(source: Source, *parts: str) -> str:
    """How messages call a file or folder of a source."""
    start = source.location if source.path is not None else f"{source.repo}@{source.revision}"
    return str(PurePosixPath(start, *(part for part in parts if part)))


def check_folder(source: Source, what: str) -> None:
    """Raise `ConfigurationError` where a source is a local folder that is not there."""
    if source.path is not None and source.path.is_file():
        raise ConfigurationError(
            f"models.yaml names the file {source.path} for {what}: give its folder as `path` and "
            "its name as `weight_name`; a base in one file has a `config` as well, a folder or "
            "repository of its family in diffusers' layout"
        )
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
    """Keyword arguments for a network's `from_pretrained`, which reads safetensors only."""
    variant = {} if source.variant is None else {"variant": source.variant}
    return {"use_safetensors": True, **place_arguments(source), **variant}


def place_arguments(source: Source) -> dict[str, Any]:
    """Keyword arguments for any `from_pretrained`: revision and subfolder, if there are any."""
    places = {"revision": source.revision, "subfolder": source.subfolder}
    return {name: value for name, value in places.items() if value is not None}


def load(kind: Any, source: Source, dtype: torch.dtype, *, also: Sequence[str] = ()) -> Any:
    """Load one network of class `kind`, whose `config.json` and weights are in the source's folder.

    `also` are other names that a configuration may give to the class. Raises `ConfigurationError`
    with the file's name where one is missing or cannot be read, is of another class, or has other
    tensors than the network.
    """
    folder = source.subfolder or ""
    declared = read_json(source, folder, "config.json").get("_class_name", kind.__name__)
    if declared not in (kind.__name__, *also):
        raise ConfigurationError(
            f"{name_of(source, folder)} is a {declared}, where a {kind.__name__} is needed"
        )
    file = _weights_file(kind, source)
    arguments = loader_arguments(source) | {
        "dtype": dtype,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # so that all of them are told
    }
    network, info = from_pretrained(kind, source, arguments, file=file)
    ignored = _IGNORED_TENSORS.get(kind.__name__, _POSITION_IDS)
    left_over = [key for key in info["unexpected_keys"] if not ignored.search(key)]
    check_tensors(
        f"{kind.__name__} {file}", info["missing_keys"], left_over, info["mismatched_keys"]
    )
    check_files(_weight_paths(kind, source), f"{kind.__name__} {file}", ignored)
    if hasattr(network, "register_to_config"):
        network.register_to_config(_name_or_path=name_of(source, folder))  # for messages
    return network


def check_tensors(
    what: str,
    missing: Iterable[str],
    left_over: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]] = (),
) -> None:
    """Raise `ConfigurationError` where the tensors of a file are not those of its network.

    `mismatched` are names with the shape in the file and the one of the network.
    """
    shapes = [f"{key} {tuple(ours)} for {tuple(theirs)}" for key, ours, theirs in mismatched]
    causes = [
        f"{len(names)} {kind}: {', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}"
        for kind, names in (
            ("tensors are missing", sorted(missing)),
            ("are left over", sorted(left_over)),
            ("have another shape", sorted(shapes)),
        )
        if names
    ]
    if causes:
        raise ConfigurationError(
            f"{what}: the file is damaged, of another kind or of another model: {'; '.join(causes)}"
        )


def check_files(paths: Iterable[Path], what: str, ignored: re.Pattern[str] = _POSITION_IDS) -> None:
    """Raise `ConfigurationError` for tensors that are no floating-point numbers, NaN or infinite.

    The libraries convert what they find. Tensors with an `ignored` name may be anything.
    """
    unusable = reading(what, lambda: [key for path in paths for key in _unusable(path, ignored)])
    if unusable:
        names = ", ".join(sorted(unusable)[:NAMED]) + (", …" if len(unusable) > NAMED else "")
        raise ConfigurationError(
            f"{what}: the file is damaged: {len(unusable)} tensors are no finite floating-point "
            f"numbers: {names}"
        )


def _unusable(path: Path, ignored: re.Pattern[str]) -> Iterator[str]:
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            if ignored.search(key):
                continue
            tensor = file.get_tensor(key)
            if not tensor.is_floating_point() or not _is_finite(tensor):
                yield key


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are; sums tell it in a quarter of the time that looking takes."""
    wide = tensor if tensor.itemsize > 1 else tensor.float()  # PyTorch adds no float8
    return all(
        part.sum().isfinite() or part.isfinite().all() for part in wide.flatten().split(_SERIAL)
    )


def read_json(source: Source, *parts: str) -> dict[str, Any]:
    """Read one JSON file of a source. Raises `ConfigurationError` where it is none or missing."""
    try:
        content = json.loads(find(source, *parts).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{name_of(source, *parts)} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{name_of(source, *parts)} holds no JSON object")
    return content


def from_pretrained(
    kind: Any, source: Source, arguments: dict[str, Any], *, file: str | None = None
) -> Any:
    """Call `kind.from_pretrained`. Raises `ConfigurationError` with the name of the file."""
    name = file or name_of(source, source.subfolder or "")
    return reading(f"{kind.__name__} {name}", kind.from_pretrained, source.location, **arguments)


def tokenizer(base: Source, part: str) -> Any:
    """Load a tokenizer of a base. Raises `ConfigurationError` where it cannot be read."""
    arguments = place_arguments(base) | {"subfolder": part}
    if base.path is not None and not (base.path / part).is_dir():
        raise ConfigurationError(f"{name_of(base, part)} does not exist")
    if base.path is not None and (base.path / part / "tokenizer_config.json").exists():
        read_json(base, part, "tokenizer_config.json")
    return from_pretrained(CLIPTokenizer, base, arguments, file=name_of(base, part))


def reading(what: str, read: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    """Call a library's `read`. Raises `ConfigurationError` where it fails, whatever it raises."""
    try:
        return read(*args, **arguments)
    except (MemoryError, torch.OutOfMemoryError, ConfigurationError):
        raise
    except Exception as error:  # libraries raise what their parsers meet, Rust's a bare Exception
        cause = " ".join(str(error).split())[:LONGEST_CAUSE]
        raise ConfigurationError(f"{what} could not be loaded: {cause}") from error


def _weight_paths(kind: Any, source: Source) -> list[Path]:
    """The files that a network was loaded from, as far as one name or an index tells them."""
    stem = "model" if issubclass(kind, PreTrainedModel) else "diffusion_pytorch_model"
    folder = source.subfolder or ""
    variant = f".{source.variant}" if source.variant else ""
    for index in (
        f"{stem}.safetensors.index{variant}.json",
        f"{stem}{variant}.safetensors.index.json",
    ):
        with suppress(ConfigurationError):
            files = set(read_json(source, folder, index)["weight_map"].values())
            return [find(source, folder, file) for file in sorted(files)]
    return [find(source, folder, f"{stem}{variant}.safetensors")]


def _weights_file(kind: Any, source: Source) -> str:
    """How messages call the weights of a network, which must be there if the folder is local."""
    stem = "model" if issubclass(kind, PreTrainedModel) else "diffusion_pytorch_model"
    name = f"{stem}.{source.variant}.safetensors" if source.variant else f"{stem}.safetensors"
    file = name_of(source, source.subfolder or "", name)
    if source.path is not None:
        folder = source.path / (source.subfolder or "")
        # The index of several files carries the variant in its own place.
        sharded = any(folder.glob(f"{stem}*.index*.json"))
        if not sharded and not (folder / name).is_file():
            raise ConfigurationError(f"{file} does not exist")
        if sharded:
            return name_of(source, source.subfolder or "")
    return file


def check_safetensors(file_name: str, what: str) -> None:
    """Raise `ConfigurationError` for a file of another format, which may run code when loaded."""
    if not file_name.endswith(".safetensors"):
        raise ConfigurationError(
            f"{what} is not a .safetensors file; `python -m workers.convert FILE` makes one of it"
        )


def encoder_source(adapter: Adapter) -> Source:
    """The image encoder of an adapter as a source of its own (the rule of diffusers' loader)."""
    folder = adapter.image_encoder
    if "/" not in folder and adapter.subfolder:
        folder = f"{adapter.subfolder}/{folder}"
    return Source(
        path=adapter.path,
        repo=adapter.repo,
        revision=adapter.revision,
        subfolder=folder,
        variant=adapter.variant,
    )


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
