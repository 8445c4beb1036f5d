"""Work that goes on beside the requests. A failure is logged and the work goes on."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from redis.exceptions import RedisError

from service.core.storage import StorageError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def repeat(step: Callable[[], Awaitable[None]], *, every_seconds: float, name: str) -> None:
    """Do `step` again and again until this task is canceled."""
    while True:
        try:
            await step()
        except (RedisError, StorageError) as error:
            log.warning("work put off: a dependency is away", work=name, cause=type(error).__name__)
        except Exception:
            log.exception("work failed", work=name)
        await asyncio.sleep(every_seconds)
