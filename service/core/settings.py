"""All settings, from environment variables with the prefix IMAGEPROMPT_ or secret files.

Units are in the names. Nothing here opens a connection. Secrets may come as files: with
IMAGEPROMPT_SECRETS_DIR=/run/secrets the file `imageprompt_redis_url` sets `redis_url`.
"""

import base64
import binascii
import difflib
import json
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.core.errors import ConfigurationError, reason

API_KEY = re.compile(r"ip_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
"""An API key: its id and its secret part."""
PREFIX: Final = "IMAGEPROMPT_"
OTHER_VARIABLES: Final = ("IMAGEPROMPT_SECRETS_DIR", "IMAGEPROMPT_URL", "IMAGEPROMPT_KEY")
"""What starts so and is no setting: where secret files are, and the command line's own."""
ROOT = Path(__file__).resolve().parents[2]


class Device(StrEnum):
    """Where the models run; `auto` takes CUDA where there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class AttentionBackend(StrEnum):
    """Which attention kernel runs; `auto` takes the fastest one measured at start-up on CUDA."""

    AUTO = "auto"
    XFORMERS = "xformers"
    SDPA = "sdpa"


class Provenance(StrEnum):
    """How a finished picture says that a model made it."""

    NONE = "none"
    XMP = "xmp"
    """IPTC's DigitalSourceType in an XMP packet."""
    C2PA = "c2pa"
    """That, and Content Credentials signed with a certificate of the operator's."""


class LogFormat(StrEnum):
    """Lines for machines or for people."""

    JSON = "json"
    TEXT = "text"


def _listed(value: object) -> object:
    """A list from the environment: JSON, or values with commas between them."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [item.strip() for item in value.split(",") if item.strip()]


class Settings(BaseSettings):
    """What an operator can set. API, workers and command line read the same ones."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    # Where things are
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    storage_url: str = f"file://{ROOT}/data/storage"
    """`file:///dir`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`; the
    prefix may be left out. Azure's account is the environment's AZURE_STORAGE_ACCOUNT_NAME. A
    folder is swept by the API, a bucket by nobody: it needs a lifecycle rule (k8s/README.md)."""
    storage_endpoint: str | None = None
    """Endpoint of an S3-compatible store other than AWS."""
    storage_public_url: str | None = None
    """Endpoint of the S3-compatible store as clients reach it, where `storage_endpoint` is reached
    from inside only; presigned URLs are made for it."""
    storage_access_key_id: SecretStr | None = None
    storage_secret_access_key: SecretStr | None = None
    """Keys of an S3 store, best given as secret files; without them the environment is asked."""
    storage_public: bool = True
    """Whether clients reach the storage themselves. If so, a picture is answered by a redirect
    to a presigned URL, else by its bytes."""
    models: Path = ROOT / "models" / "shapes.yaml"
    """Path of the `models.yaml` that names the models to serve."""

    model_files_url: str | None = None
    """Bucket from which `python -m workers.download` copies the model files instead of asking the
    model hub; of the form of `storage_url`, with the same endpoint and keys."""

    # Taking requests in
    max_body_bytes: Annotated[int, Field(gt=0)] = 100 * 2**20
    max_file_bytes: Annotated[int, Field(gt=0)] = 20 * 2**20
    max_image_pixels: Annotated[int, Field(gt=0)] = 40_000_000
    body_timeout_seconds: Annotated[float, Field(gt=0)] = 300
    """A request whose body has not come in by then is refused, so that slow ones do not pile up."""
    grace_seconds: Annotated[float, Field(ge=0)] = 60
    """After SIGTERM, how long bodies may go on to come in before they are answered 503. The process
    ends some 10 s later at the latest, and k8s and compose must wait so long."""
    max_queued_jobs: Annotated[int, Field(gt=0)] = 1000
    queue_deadline_seconds: Annotated[float, Field(gt=0)] = 3600
    """A job that no worker has started in this time is of no use any more and expires."""
    max_connections: Annotated[int, Field(gt=0)] = 1000
    """Open connections of one API process, at most half of them from one client address. Each
    takes a file descriptor, so the limit of open files (`ulimit -n`) bounds them too."""
    max_event_streams: Annotated[int, Field(gt=0)] = 200
    presigned_url_seconds: Annotated[int, Field(gt=0)] = 600
    signed_url_seconds: Annotated[int, Field(gt=0)] = 3600
    """How long a signed URL of a picture or of events is valid at least, and at most twice as
    long. Jobs of API keys have them; jobs of anonymous callers need none."""

    input_urls: bool = False
    """Whether requests may name their files by https URLs, which the API then fetches: of public
    addresses, within the limits of uploads."""
    input_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Networks that are not public and from which files may be fetched nevertheless."""

    # How clients reach it
    public_url: str | None = None
    """URL under which clients reach the service, with the path prefix if there is one. Without it
    links have the host that was asked for."""
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Networks of proxies whose `Forwarded` and `X-Forwarded-*` headers are believed."""
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Origins (`https://app.example`) whose web pages may use the service."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Host names by which the service may be used without an API key, beside addresses,
    `localhost`, names without a dot and the host of `public_url`."""

    # Who may
    allow_anonymous: bool = False
    """Whether requests without an API key are served on a host other than loopback, as long as
    no key is configured. On loopback they are; without this the service listens there only
    until a key is made."""
    require_api_keys: bool = False
    """Whether no request about jobs is ever served without an API key, also while none exists."""
    bootstrap_key: SecretStr | None = None
    """An API key with all rights that exists from the start, best given as the secret file
    `imageprompt_bootstrap_key`: `ip_`, 12 hexadecimal digits, `_` and 43 URL-safe characters. It
    cannot be revoked while it is set."""
    webhook_secret: SecretStr | None = None
    """Signs webhooks of requests without an API key (`whsec_` and base64); keys have their own."""
    webhook_networks: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Networks that are not public and that webhooks may reach nevertheless."""
    admin_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port for docs, metrics and health alone; without it they are on `port`."""
    admin_host: str = "127.0.0.1"
    api_processes: Annotated[int, Field(gt=0, le=64)] = 1
    """API processes that share `port`: one for each core that is to serve HTTP. Limits of
    connections, event streams and bodies are those of each. Their metrics add up."""
    page: bool = True
    """Whether the web page is served at `/`; the API is the same without it."""

    # Keeping
    sweep_seconds: Annotated[float, Field(gt=0)] = 300
    """How often a local storage folder is swept of pictures whose job has expired, and of uploads
    without a job. A bucket is not: its own lifecycle rule has to delete them."""
    job_retention_seconds: Annotated[int, Field(gt=0)] = 24 * 3600
    """How long a finished job's record and pictures are kept. Its objects in a bucket stay until
    the bucket's lifecycle rule deletes them, which must not be sooner than this."""
    tombstone_seconds: Annotated[int, Field(gt=0)] = 7 * 24 * 3600
    """How long after that a job answers 410 and not 404."""

    # Workers
    queue: str = "imageprompt"
    device: Device = Device.AUTO
    attention: AttentionBackend = AttentionBackend.AUTO
    compile: bool = True
    """Whether the UNet is compiled at warm-up on CUDA."""
    worker_slots: Annotated[int, Field(gt=0, le=256)] = 16
    """Jobs that one worker holds at once; the engine batches their rows."""
    worker_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of torch; 0 leaves it to torch."""
    worker_metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9100
    """Port of the worker's own /metrics and health; 0 takes a free one."""
    lease_seconds: Annotated[float, Field(gt=0)] = 6
    """A worker that has not renewed a job's lease for so long has lost the job."""
    max_attempts: Annotated[int, Field(gt=0)] = 3
    drain_seconds: Annotated[float, Field(ge=0)] = 60
    """Grace after SIGTERM in which running jobs may finish before they are handed back."""
    step_timeout_seconds: Annotated[float, Field(gt=0)] = 120
    """Without a finished denoising step for so long a busy worker counts as hung."""
    job_timeout_seconds: Annotated[float, Field(gt=0)] = 1800
    """A job that computes for longer, from its first step on, fails; the others go on."""
    embedding_cache_entries: Annotated[int, Field(ge=0)] = 512
    """Embeddings of image prompts, and as many of texts, in a worker's memory; 0 keeps none."""
    embedding_cache_seconds: Annotated[int, Field(gt=0)] = 7 * 24 * 3600
    """How long Redis keeps an embedding after its last use, whether its jobs are deleted or not."""
    embedding_cache_bytes: Annotated[int, Field(ge=0)] = 128 * 2**20
    """How many bytes Redis keeps of them at most; one of an SDXL text has 0.3 MB, one for a Plus
    adapter 0.7 MB. It holds the jobs, too, and refuses them when it is full."""
    provenance: Provenance = Provenance.XMP
    c2pa_certificates: Path | None = None
    """PEM file of the certificate that signs pictures, followed by its issuers."""
    c2pa_key: Path | None = None
    """PEM file of its private key."""
    preview_every_steps: Annotated[int, Field(ge=0)] = 0
    """Send a small preview event every so many steps; 0 sends none."""

    # Logs
    log_level: str = "INFO"
    log_format: LogFormat = LogFormat.JSON

    @field_validator("api_processes")
    @classmethod
    def _share_a_port(cls, count: int, info: ValidationInfo) -> int:
        if count > 1 and 0 in (info.data.get("port"), info.data.get("admin_port")):
            raise ValueError("several processes need a port that is not 0")
        return count

    @field_validator("bootstrap_key")
    @classmethod
    def _is_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None or API_KEY.fullmatch(key.get_secret_value()):
            return key
        raise ValueError("must be ip_, 12 hexadecimal digits, _ and 43 of A-Z, a-z, 0-9, _ and -")

    @field_validator("public_url", "storage_public_url")
    @classmethod
    def _is_base_url(cls, url: str | None) -> str | None:
        if not url:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError("must be an http or https URL with a host and without credentials")
        if parts.query or parts.fragment:
            raise ValueError("must have no query and no fragment")
        return url.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
                raise ValueError(f"{origin!r} is no origin; write scheme://host or with a port")
        return origins

    @field_validator("webhook_secret")
    @classmethod
    def _signs(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            text = secret.get_secret_value().removeprefix("whsec_")
            try:
                key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
            except binascii.Error:
                key = b""
            if not key:
                raise ValueError("must be base64, with or without whsec_ before it")
        return secret


def load_settings() -> Settings:
    """Settings from the environment and, where IMAGEPROMPT_SECRETS_DIR is set, from files.

    Raises `ConfigurationError` naming each variable that is wrong, without its value.
    """
    secrets_dir = os.environ.get("IMAGEPROMPT_SECRETS_DIR")
    try:
        return Settings(_secrets_dir=secrets_dir) if secrets_dir else Settings()
    except ValidationError as error:
        causes = [
            # Of a list, what follows is the place of the wrong item.
            f"{_variable(str(cause['loc'][0]))}: {reason(cause)}"
            for cause in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("; ".join(causes)) from None


def unknown_variables() -> list[str]:
    """Names in the environment that look like settings and are none, with the nearest that is."""
    known = [*map(_variable, Settings.model_fields), *OTHER_VARIABLES]
    found = []
    for name in sorted(set(os.environ) - set(known)):
        if name.startswith(PREFIX):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            found.append(f"{name} (did you mean {near[0]}?)" if near else name)
    return found


def _variable(field: str) -> str:
    return PREFIX + field.upper()
