"""Object storage for uploads and results: a local folder, S3, GCS or Azure, by one URL.

Stands on obstore. Keys come from `service.core.redis_keys`; nothing here knows what they mean.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

from service.core.errors import ConfigurationError
from service.core.settings import Settings

R = TypeVar("R")
OWNER_MARK: Final = ".owner"
"""File of a local store that names the Redis whose jobs its objects belong to."""
_PARTIAL: Final = re.compile(r"#\d+$")
"""How obstore names a local file until it is written whole."""


class StorageError(Exception):
    """Raised when the storage does not answer or refuses."""


class ObjectMissing(StorageError):
    """Raised when there is no object under a key."""


class Storage:
    """Puts, gets, deletes and signs objects. Blocking and asynchronous forms are the same.

    Every method raises `StorageError`; `get` raises `ObjectMissing` for an unknown key.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        presigned_url_seconds: int,
        public: bool = True,
        signing_store: ObjectStore | None = None,
        folder: Path | None = None,
    ) -> None:
        """`signing_store` is the same storage under the endpoint that clients reach.

        `folder` is where a local store keeps its files.
        """
        self._store = store
        self._signing_store = signing_store or store
        self._folder = folder
        self._presigned = timedelta(seconds=presigned_url_seconds)
        self._public = public

    @classmethod
    def from_settings(cls, settings: Settings) -> "Storage":
        """The storage that the settings name. Raises `ConfigurationError`."""
        key_id, secret = settings.storage_access_key_id, settings.storage_secret_access_key
        return cls.open(
            settings.storage_url,
            endpoint=settings.storage_endpoint,
            public_endpoint=settings.storage_public_url,
            access_key_id=key_id.get_secret_value() if key_id else None,
            secret_access_key=secret.get_secret_value() if secret else None,
            presigned_url_seconds=settings.presigned_url_seconds,
            public=settings.storage_public,
        )

    @classmethod
    def open(
        cls,
        url: str,
        *,
        endpoint: str | None = None,
        public_endpoint: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        presigned_url_seconds: int,
        public: bool = True,
    ) -> "Storage":
        """The storage behind `file:///dir`, `s3://bucket/…`, `gs://bucket/…` or `az://container/…`.

        What follows the bucket is a prefix of all keys. S3 keys that are not given, Azure's
        account and all credentials of the others come from the environment, as the cloud's own
        tools read them. Raises `ConfigurationError` for a URL that is none of
        these.
        """
        parts = urlsplit(url)
        if parts.scheme == "file":
            folder = Path(parts.path)
            folder.mkdir(parents=True, exist_ok=True)
            return cls(
                LocalStore(folder, automatic_cleanup=True),
                presigned_url_seconds=presigned_url_seconds,
                folder=folder,
            )
        if (access_key_id is None) != (secret_access_key is None):
            raise ConfigurationError(
                "IMAGEPROMPT_STORAGE_ACCESS_KEY_ID and IMAGEPROMPT_STORAGE_SECRET_ACCESS_KEY "
                "belong together; only one of them is set"
            )
        if parts.scheme not in ("s3", "gs", "az"):
            raise ConfigurationError(
                f"IMAGEPROMPT_STORAGE_URL has the scheme {parts.scheme!r}; "
                "file, s3, gs and az are served"
            )
        options: dict[str, Any] = {
            "client_options": {
                "timeout": "10s",
                "connect_timeout": "3s",
                "allow_http": any(
                    one and one.startswith("http://") for one in (endpoint, public_endpoint)
                ),
            },
            "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=15)},
        }
        if endpoint is not None:
            options["endpoint"] = endpoint
        if access_key_id is not None and parts.scheme == "s3":
            options |= {"access_key_id": access_key_id, "secret_access_key": secret_access_key}
        try:
            store = from_url(url, **options)
            signing_store = (
                None
                if public_endpoint is None
                else from_url(url, **options | {"endpoint": public_endpoint})
            )
        except (BaseError, ValueError) as error:
            raise ConfigurationError(f"IMAGEPROMPT_STORAGE_URL: {error}") from error
        return cls(
            store,
            presigned_url_seconds=presigned_url_seconds,
            public=public,
            signing_store=signing_store,
        )

    @property
    def signs(self) -> bool:
        """Whether a client can be sent to a presigned URL."""
        return self._public and not isinstance(self._store, LocalStore)

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Write one object, whole or not at all."""
        self._call(lambda: obstore.put(self._store, key, data, attributes=self._kind(content_type)))

    async def put_async(self, key: str, data: bytes | memoryview, content_type: str) -> None:
        """As `put`."""
        try:
            await obstore.put_async(self._store, key, data, attributes=self._kind(content_type))
        except BaseError as error:
            raise StorageError(type(error).__name__) from error

    def get(self, key: str) -> bytes:
        """Read one object whole."""
        return self._call(lambda: bytes(obstore.get(self._store, key).bytes()))

    async def get_async(self, key: str) -> bytes:
        """As `get`."""
        try:
            answer = await obstore.get_async(self._store, key)
            return bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectMissing(key) from error
        except BaseError as error:
            raise StorageError(type(error).__name__) from error

    async def size_async(self, key: str) -> int:
        """Bytes of one object."""
        try:
            return int((await obstore.head_async(self._store, key))["size"])
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectMissing(key) from error
        except BaseError as error:
            raise StorageError(type(error).__name__) from error

    def delete(self, key: str) -> None:
        """Delete one object; one that is not there is no error."""
        try:
            self._call(lambda: obstore.delete(self._store, key))
        except ObjectMissing:
            return

    def delete_folder(self, prefix: str) -> int:
        """Delete every object under `prefix` and return how many there were."""

        def delete() -> int:
            paths = [
                entry["path"] for batch in obstore.list(self._store, prefix) for entry in batch
            ]
            if paths:
                obstore.delete(self._store, paths)
            return len(paths)

        return self._call(delete)

    @property
    def has_lifecycle(self) -> bool:
        """Whether the storage can delete old objects by rules of its own."""
        return not isinstance(self._store, LocalStore)

    def folders(self, prefix: str) -> dict[str, float]:
        """Folders right under `prefix`, each with when its newest object was written (epoch)."""

        def find() -> dict[str, float]:
            newest: dict[str, float] = {}
            for batch in obstore.list(self._store, prefix):
                for entry in batch:
                    name = entry["path"].removeprefix(f"{prefix}/").partition("/")[0]
                    written = entry["last_modified"].timestamp()
                    newest[name] = max(newest.get(name, 0.0), written)
            return newest

        return self._call(find)

    def now(self) -> float:
        """The time (epoch) by the clock that dates the objects of a local store."""
        self.check()
        return self._local("health/check").stat().st_mtime

    @property
    def owner_mark(self) -> str | None:
        """What `mark_owner` wrote into a local store, `None` where nothing did."""
        try:
            return self._local(OWNER_MARK).read_text("utf-8").strip() or None
        except FileNotFoundError:
            return None

    def mark_owner(self, mark: str) -> None:
        """Write into a local store to whom its objects belong."""
        self._local(OWNER_MARK).write_text(f"{mark}\n", "utf-8")

    def delete_partial(self, *, before: float) -> int:
        """Delete what writes to a local store left that were killed before a time (epoch)."""
        deleted = 0
        for path in self._local("").rglob("*#*"):
            with suppress(OSError):  # its writer may have renamed it
                if _PARTIAL.search(path.name) and path.stat().st_mtime < before:
                    path.unlink()
                    deleted += 1
        return deleted

    def _local(self, key: str) -> Path:
        if self._folder is None:
            raise StorageError("this is no local folder")
        return self._folder / key

    def sign(self, key: str) -> str:
        """A URL under which anybody may read the object for a while."""
        store = cast("S3Store | GCSStore | AzureStore", self._signing_store)
        return self._call(lambda: obstore.sign(store, "GET", key, self._presigned))

    def check(self) -> None:
        """Write and read one small object, to see that the storage answers."""
        self.put("health/check", b"ok", "text/plain")
        self.get("health/check")

    def _kind(self, content_type: str) -> Any:
        return None if isinstance(self._store, LocalStore) else {"Content-Type": content_type}

    @staticmethod
    def _call(action: Callable[[], R]) -> R:
        try:
            return action()
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectMissing(str(error)) from error
        except BaseError as error:
            raise StorageError(type(error).__name__) from error
