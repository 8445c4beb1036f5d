"""`python -m workers.download`: download the models that models.yaml names.

Run once before workers start; `--wait` waits until that has been done for this models.yaml by this
version, after which another run ends at once. The files come from the model hub (HF_ENDPOINT names
a mirror, HF_TOKEN_PATH a token) or, with IMAGEPROMPT_MODEL_FILES_URL, from a bucket that
`--upload URL` has filled: a bucket has no symbolic links, so what a cache links to is stored under
the link's own name, which the hub's library reads as well. Sources that are local folders are
skipped. No weights are loaded.
"""

import contextlib
import fcntl
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
import structlog
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.tqdm import disable_progress_bars
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from service import __version__
from service.core import logging
from service.core.catalog import Adapter, Catalog, ModelEntry, Source, WeightsFile, load_catalog
from service.core.errors import ConfigurationError
from service.core.settings import Settings, load_settings

POLL_SECONDS: Final = 2.0
CONFIGURATION_WRONG: Final = 2
UPLOAD_WORDS: Final = 2
"""`--upload` and its URL."""

logger = structlog.get_logger("workers.download")


def marker(models: Path) -> Path:
    """The file that marks that everything which `models` (a models.yaml) names is in the cache.

    Another version of the program may read other files of the same repositories.
    """
    digest = hashlib.sha256(models.read_bytes() + __version__.encode()).hexdigest()
    return Path(constants.HF_HOME) / "fetched" / digest


def download(catalog: Catalog) -> None:
    """Download the files of every model. Raises `ConfigurationError` where one is missing."""
    for name, entry in catalog.models.items():
        for what, source, load in _downloads(entry):
            if source.repo is None:
                continue
            logger.info("downloading", model=name, what=what, repo=source.repo)
            try:
                load()
            except (HfHubHTTPError, OSError) as error:
                raise ConfigurationError(
                    f"{name}: {what} could not be downloaded from "
                    f"{source.repo}@{source.revision}: {error}"
                ) from error


def _downloads(entry: ModelEntry) -> Iterator[tuple[str, Source, Callable[[], object]]]:
    # torch and diffusers take seconds to import, and `--wait` needs neither.
    from diffusers import DiffusionPipeline  # noqa: PLC0415

    from workers.engine.models import hub  # noqa: PLC0415

    def pipeline() -> object:
        arguments = hub.loader_arguments(entry.base)
        # SD 1.5's safety checker is as large as its text encoder, and no family loads it.
        return DiffusionPipeline.download(entry.base.location, safety_checker=None, **arguments)

    def part(source: Source, patterns: Sequence[str]) -> Callable[[], object]:
        return lambda: snapshot_download(
            str(source.repo), revision=source.revision, allow_patterns=list(patterns)
        )

    def weights_file(source: WeightsFile) -> Callable[[], object]:
        return lambda: hf_hub_download(
            str(source.repo),
            source.weight_name,
            subfolder=source.subfolder,
            revision=source.revision,
        )

    for name, source in entry.parts().items():
        match source:
            case WeightsFile():
                yield name, source, weights_file(source)
            case _ if name == "base":
                yield name, source, pipeline
            case _ if name == "base/config":
                yield name, source, part(source, SETTINGS)
            case _:
                yield name, source, part(source, _patterns(source))
        if isinstance(source, Adapter):
            encoder = hub.encoder_source(source)
            yield f"{name}, image encoder", encoder, part(encoder, _patterns(encoder))


def _patterns(source: Source) -> list[str]:
    """List the files that `from_pretrained` reads of one network: settings and weights."""
    folder = f"{source.subfolder}/" if source.subfolder else ""
    suffix = f".{source.variant}" if source.variant else ""
    names = (
        "config.json",
        "preprocessor_config.json",
        *(f"{stem}{suffix}.safetensors" for stem in _STEMS),
    )
    return [folder + name for name in names]


SETTINGS: Final = ("*.json", "tokenizer*/*.txt")
"""The files of a base that another one in one file takes."""
_STEMS: Final = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers call the weights of one network."""


def main(arguments: list[str]) -> int:
    """Download, wait with `--wait`, or upload with `--upload URL`; the exit status."""
    logging.configure()
    disable_progress_bars()
    try:
        settings = load_settings()
        logging.configure(settings.log_level, settings.log_format)
        done = marker(settings.models)
        if arguments == ["--wait"]:
            logger.info("waiting for models", marker=str(done))
            while not done.exists():
                time.sleep(POLL_SECONDS)
            return 0
        if arguments[:1] == ["--upload"] and len(arguments) == UPLOAD_WORDS:
            copy_to_bucket(Path(constants.HF_HOME), arguments[1], settings)
            return 0
        if arguments:
            logger.critical("usage: python -m workers.download [--wait | --upload URL]")
            return CONFIGURATION_WRONG
        with _alone(done.parent):
            _fill(done, settings)
    except ConfigurationError as error:
        logger.critical("configuration is wrong", cause=str(error))
        return CONFIGURATION_WRONG
    return 0


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process fills the same cache."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(done: Path, settings: Settings) -> None:
    """Put what models.yaml names into the cache. Raises `ConfigurationError`."""
    if done.exists():
        logger.info("everything is there", marker=str(done))
        return
    if settings.model_files_url is None:
        download(load_catalog(settings.models))
    else:
        copy_from_bucket(settings.model_files_url, Path(constants.HF_HOME), settings)
    done.touch()
    logger.info("downloaded", marker=str(done))


FOLDER: Final = "hub"
"""Of HF_HOME: the repositories."""
CHUNK_BYTES: Final = 16 * 2**20


def copy_to_bucket(cache: Path, url: str, settings: Settings) -> None:
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


def copy_from_bucket(url: str, cache: Path, settings: Settings) -> None:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
