"""Which weights a picture was made with: a revision for each part of a model."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from huggingface_hub import try_to_load_from_cache

from service.core.catalog import ModelEntry, Source, WeightsFile
from service.core.errors import ConfigurationError

_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 64 * 1024


def revisions(entry: ModelEntry) -> dict[str, str]:
    """The revision of each part of a model (`ModelEntry.parts`).

    A part from the hub has its repository and commit, one from a local folder a digest of samples
    of its files. Neither names a path.
    """
    return {name: _revision(source) for name, source in entry.parts().items()}


def _revision(source: Source) -> str:
    if source.path is None:
        return f"{source.repo}@{_commit(source)}"
    digest = hashlib.sha256()
    try:
        for path in sorted(_files(source, source.path)):
            digest.update(f"{path.relative_to(source.path)} {path.stat().st_size}\n".encode())
            for sample in _samples(path):
                digest.update(sample)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or source.path} cannot be read: {error.strerror}"
        ) from None
    return f"local-{digest.hexdigest()[:16]}"


def _commit(source: Source) -> str:
    """The commit that the cache holds for a branch or tag; the revision itself where unknown."""
    revision = source.revision or "main"
    name = "model_index.json"
    if isinstance(source, WeightsFile):
        name = "/".join(part for part in (source.subfolder, source.weight_name) if part)
    elif source.subfolder or not _is_pipeline(source):
        name = "/".join(part for part in (source.subfolder, "config.json") if part)
    found = try_to_load_from_cache(str(source.repo), name, revision=revision)
    parts = Path(found).parts if isinstance(found, str) else ()
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision


def _is_pipeline(source: Source) -> bool:
    found = try_to_load_from_cache(
        str(source.repo), "model_index.json", revision=source.revision or "main"
    )
    return isinstance(found, str)


def _files(source: Source, folder: Path) -> Iterator[Path]:
    if isinstance(source, WeightsFile):
        yield folder / (source.subfolder or "") / source.weight_name
        return
    place = folder / (source.subfolder or "")
    yield from list(place.rglob("*.safetensors")) or place.rglob("*.json")


def _samples(path: Path) -> Iterator[bytes]:
    """Pieces from all over a file; all of it where it is small."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            yield file.read()
            return
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)
