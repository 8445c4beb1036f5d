"""Files that are uploaded before the request that uses them: kept for an hour, a few a caller.

The bytes are in the storage, the records in Redis. A file is not decoded before a request uses it.
"""

import time
import uuid
from datetime import UTC, datetime
from typing import Any, Final

import redis.asyncio as aioredis
from anyio import to_thread
from pydantic import BaseModel, ConfigDict, ValidationError

from service.core import redis_keys
from service.core.errors import NotFound
from service.core.storage import ObjectMissing, Storage
from service.submission.form import Upload

LIFETIME_SECONDS: Final = 3600
MAX_FILES: Final = 64
"""Of one caller; one more replaces the oldest."""


class FileRecord(BaseModel):
    """One file. Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    name: str
    size_bytes: int
    sha256: str
    created_at: float
    metadata: dict[str, Any]

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

    async def add(
        self, upload: Upload, *, owner: str, share: str, metadata: dict[str, Any]
    ) -> FileRecord:
        """Keep a file. `share` says whose oldest file makes room for it."""
        record = FileRecord(
            id=str(uuid.uuid4()),
            owner=owner,
            name=upload.filename or "file",
            size_bytes=upload.size_bytes,
            sha256=upload.sha256,
            created_at=time.time(),
            metadata=metadata,
        )
        data = await to_thread.run_sync(upload.content.read)
        await self._storage.put_async(
            redis_keys.stored_file(record.id), data, "application/octet-stream"
        )
        index = redis_keys.owner_files(share)
        async with self._redis.pipeline() as pipeline:
            pipeline.set(redis_keys.file(record.id), record.model_dump_json(), ex=LIFETIME_SECONDS)
            pipeline.zadd(index, {record.id: record.created_at})
            pipeline.expire(index, LIFETIME_SECONDS)
            pipeline.zrange(index, 0, -MAX_FILES - 1)
            *_, oldest = await pipeline.execute()
        for file_id in oldest:
            await self._erase(file_id, index)
        return record

    async def get(self, file_id: str, owner: str) -> FileRecord:
        """One file's record. Raises `NotFound`, also where it is another owner's."""
        text: Any = await self._redis.get(redis_keys.file(file_id))
        try:
            record = None if text is None else FileRecord.model_validate_json(text)
        except ValidationError:
            record = None
        if record is None or record.owner != owner:
            raise NotFound("There is no such file, or it has expired")
        return record

    async def read(self, file_id: str, owner: str) -> bytes:
        """The bytes of a file. Raises as `get`."""
        record = await self.get(file_id, owner)
        try:
            return await self._storage.get_async(redis_keys.stored_file(record.id))
        except ObjectMissing:
            raise NotFound("There is no such file, or it has expired") from None

    async def list(self, *, owner: str, share: str) -> list[FileRecord]:
        """All files of a caller, newest first."""
        names: Any = await self._redis.zrevrange(redis_keys.owner_files(share), 0, -1)
        found = []
        for file_id in names:
            try:
                found.append(await self.get(file_id, owner))
            except NotFound:
                continue
        return found

    async def delete(self, file_id: str, *, owner: str, share: str) -> None:
        """Delete a file. Raises as `get`."""
        await self._erase((await self.get(file_id, owner)).id, redis_keys.owner_files(share))

    async def _erase(self, file_id: str, index: str) -> None:
        await to_thread.run_sync(self._storage.delete, redis_keys.stored_file(file_id))
        async with self._redis.pipeline() as pipeline:
            pipeline.delete(redis_keys.file(file_id))
            pipeline.zrem(index, file_id)
            await pipeline.execute()
