"""Files that are uploaded before the request that uses them: kept for an hour, a few a caller.

The bytes are in the storage, the records in Redis. A file is not decoded before a request uses it.
"""

import json
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import redis.asyncio as aioredis
from anyio import to_thread
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from redis.exceptions import RedisError

from service.core import redis_keys
from service.core.errors import NotFound
from service.core.job import Moment
from service.core.redis_server import readable, wrong_type_is_absent
from service.core.storage import ObjectMissing, Storage, StorageError
from service.submission.form import Upload

LIFETIME_SECONDS: Final = 3600
MAX_FILES: Final = 64
"""Of one caller; one more replaces the oldest."""


def _sendable(metadata: dict[str, Any]) -> dict[str, Any]:
    """Raise `ValueError` where it has numbers or texts that JSON cannot carry."""
    json.dumps(metadata, allow_nan=False, ensure_ascii=False).encode()
    return metadata


Metadata = Annotated[dict[str, Any], AfterValidator(_sendable)]


class FileRecord(BaseModel):
    """One file. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    name: str
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: str
    created_at: Moment
    """By Redis' clock, as all processes see it."""
    metadata: Metadata

    @property
    def created_at_text(self) -> str:
        """As ISO 8601."""
        return datetime.fromtimestamp(self.created_at, UTC).isoformat()

    @property
    def expires_at_text(self) -> str:
        """When it is deleted, as ISO 8601."""
        return datetime.fromtimestamp(self.created_at + LIFETIME_SECONDS, UTC).isoformat()


class FileStore:
    """Methods raise `redis.RedisError` and `StorageError`."""

    def __init__(self, redis: "aioredis.Redis", storage: Storage) -> None:
        self._redis = redis
        self._storage = storage
        self._save = redis.register_script(redis_keys.load_script("file_save"))

    async def add(
        self, upload: Upload, *, owner: str, share: str, metadata: dict[str, Any]
    ) -> FileRecord:
        """Keep a file. `share` says whose oldest file makes room for it."""
        seconds, microseconds = await self._redis.time()
        record = FileRecord(
            id=str(uuid.uuid4()),
            owner=owner,
            name=upload.filename or "file",
            size_bytes=upload.size_bytes,
            sha256=upload.sha256,
            created_at=seconds + microseconds / 1e6,
            metadata=metadata,
        )
        data = await to_thread.run_sync(upload.content.read)
        await self._storage.put_async(
            redis_keys.stored_file(record.id), data, "application/octet-stream"
        )
        index = redis_keys.owner_files(share)
        try:
            oldest: Any = await self._save(
                keys=[redis_keys.file(record.id), index],
                args=[
                    *(record.id, record.model_dump_json(), record.created_at),
                    *(LIFETIME_SECONDS, MAX_FILES),
                ],
            )
        except RedisError:
            with suppress(RedisError, StorageError):
                await self._erase(record.id, index)
            raise
        for file_id in oldest:
            await self._erase(file_id, index)
        return record

    async def get(self, file_id: str, owner: str) -> FileRecord:
        """One file's record. Raises `NotFound`, also where it is another owner's."""
        record = await self._read(file_id)
        if record is None or record.owner != owner:
            raise NotFound("There is no such file, or it has expired")
        return record

    async def _read(self, file_id: str) -> FileRecord | None:
        """One file's record; `None` where there is none, or a damaged one."""
        text: Any = None
        with wrong_type_is_absent():
            text = await self._redis.get(redis_keys.file(file_id))
        try:
            record = None if text is None else FileRecord.model_validate_json(text)
        except ValidationError:
            return None
        return record if record is not None and record.id == file_id else None

    async def read(self, file_id: str, owner: str) -> bytes:
        """The bytes of a file. Raises as `get`."""
        record = await self.get(file_id, owner)
        try:
            return await self._storage.get_async(redis_keys.stored_file(record.id))
        except ObjectMissing:
            raise NotFound("There is no such file, or it has expired") from None

    async def list(self, *, owner: str, share: str) -> list[FileRecord]:
        """All files of a caller, newest first."""
        names: Any = []
        with wrong_type_is_absent():
            names = await self._redis.zrevrange(redis_keys.owner_files(share), 0, -1)
        found = []
        for file_id in names:
            try:
                found.append(await self.get(file_id, owner))
            except NotFound:
                continue
        return found

    async def delete(self, file_id: str, *, owner: str, share: str) -> None:
        """Delete a file, also one whose record is damaged. Raises as `get`."""
        index = redis_keys.owner_files(share)
        try:
            await self.get(file_id, owner)
        except NotFound:
            if await self._read(file_id) is not None or not await self._lists(index, file_id):
                raise
        await self._erase(file_id, index)

    async def _lists(self, index: str, file_id: str) -> bool:
        """Whether a caller's list has a file that is still kept."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.exists(redis_keys.file(file_id))
            pipeline.zscore(index, file_id)
            exists, listed = readable(await pipeline.execute(raise_on_error=False))
        return bool(exists) and listed is not None

    async def _erase(self, file_id: str, index: str) -> None:
        await to_thread.run_sync(self._storage.delete, redis_keys.stored_file(file_id))
        # No transaction: a full Redis refuses those, even where they only delete.
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.delete(redis_keys.file(file_id))
            pipeline.zrem(index, file_id)
            readable(await pipeline.execute(raise_on_error=False))
