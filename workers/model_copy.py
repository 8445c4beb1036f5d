"""Copies a Hugging Face cache to a bucket and back, so that clusters need no model hub.

A bucket has no symbolic links: what a cache links to is stored under the link's own name, which the
hub's library reads as well.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from service.core.errors import ConfigurationError
from service.core.settings import Settings

FOLDER: Final = "hub"
"""Of HF_HOME: the repositories."""
CHUNK_BYTES: Final = 16 * 2**20

logger = structlog.get_logger("workers.model_copy")


def upload(cache: Path, url: str, settings: Settings) -> None:
    """Copy the repositories in `cache` (HF_HOME) to the bucket. Raises `ConfigurationError`."""
    store = _open(url, settings)
    for file in _files(cache):
        name = file.relative_to(cache).as_posix()
        logger.info("uploading", file=name, bytes=file.stat().st_size)
        try:
            with file.open("rb") as source:
                obstore.put(store, name, source, chunk_size=CHUNK_BYTES)
        except (BaseError, OSError) as error:
            raise ConfigurationError(f"{name} could not be written to {url}: {error}") from error


def download(url: str, cache: Path, settings: Settings) -> None:
    """Copy all files of the bucket that `cache` (HF_HOME) lacks. Raises `ConfigurationError`."""
    store = _open(url, settings)
    found = 0
    try:
        for batch in obstore.list(store, FOLDER):
            for entry in batch:
                found += 1
                _copy(store, entry["path"], entry["size"], cache)
    except (BaseError, OSError) as error:
        raise ConfigurationError(f"model files could not be copied from {url}: {error}") from error
    if not found:
        raise ConfigurationError(
            f"IMAGEPROMPT_MODEL_FILES_URL: nothing lies under {url}/{FOLDER}; fill it with "
            "`python -m workers.download --upload URL`"
        )


def _copy(store: ObjectStore, name: str, size: int, cache: Path) -> None:
    target = cache / name
    if target.exists() and target.stat().st_size == size:
        return
    logger.info("copying", file=name, bytes=size)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with part.open("wb") as file:
        for chunk in obstore.get(store, name).stream(min_chunk_size=CHUNK_BYTES):
            file.write(chunk)
    part.replace(target)


def _files(cache: Path) -> Iterator[Path]:
    """References and snapshots of every repository, their links followed."""
    for file in sorted((cache / FOLDER).glob("models--*/*/**/*")):
        if file.parts[len(cache.parts) + 2] in ("refs", "snapshots") and file.is_file():
            yield file


def _open(url: str, settings: Settings) -> ObjectStore:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalStore(Path(parts.path), mkdir=True)
    options: dict[str, Any] = {
        # A file of 10 GB takes minutes; one that sends nothing for a minute has stopped.
        "client_options": {
            "timeout": "2h",
            "connect_timeout": "10s",
            "read_timeout": "60s",
            "allow_http": (settings.storage_endpoint or "").startswith("http://"),
        },
        "retry_config": {"max_retries": 5, "retry_timeout": timedelta(minutes=5)},
    }
    if settings.storage_endpoint is not None:
        options["endpoint"] = settings.storage_endpoint
    key_id, secret = settings.storage_access_key_id, settings.storage_secret_access_key
    if key_id is not None and secret is not None and parts.scheme == "s3":
        options |= {
            "access_key_id": key_id.get_secret_value(),
            "secret_access_key": secret.get_secret_value(),
        }
    try:
        return from_url(url, **options)
    except (BaseError, ValueError) as error:
        raise ConfigurationError(f"IMAGEPROMPT_MODEL_FILES_URL: {error}") from error
