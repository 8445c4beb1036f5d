"""The Redis server behind the service: what kind it is, how full, and why it refuses.

A Redis that cannot hold jobs safely is refused or reported at start; an error of Redis is logged
with its cause, without secrets.
"""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis.exceptions as errors
import structlog
from redis import Redis

from service.core.errors import ConfigurationError

logger = structlog.get_logger(__name__)

HEADROOM: Final = 0.1
"""Part of `maxmemory` that is kept for accepted jobs: new ones are refused when less is free."""

_CAUSES: Final[tuple[tuple[type[Exception] | str, str], ...]] = (
    ("Authentication required", "it demands a password; IMAGEPROMPT_REDIS_URL has none"),
    (errors.AuthenticationError, "the user name or password in IMAGEPROMPT_REDIS_URL is wrong"),
    (errors.NoPermissionError, "the user of IMAGEPROMPT_REDIS_URL lacks a permission (ACL)"),
    (
        errors.ReadOnlyError,
        "it is a read-only replica; IMAGEPROMPT_REDIS_URL needs the primary",
    ),
    (errors.OutOfMemoryError, "it is full (maxmemory is reached)"),
    # What Redis 7 says of a command inside a script.
    ("can't run this command", "the user of IMAGEPROMPT_REDIS_URL lacks a permission (ACL)"),
    # Before Redis 7, what a script was refused comes as another error with the cause in its text.
    ("-READONLY ", "it is a read-only replica; IMAGEPROMPT_REDIS_URL needs the primary"),
    ("-OOM ", "it is full (maxmemory is reached)"),
    ("MISCONF", "it refuses writes, since it cannot save to its disk"),
    ("NOREPLICAS", "it refuses writes, since it has too few replicas (min-replicas-to-write)"),
    ("MASTERDOWN", "it is a replica that has lost its primary"),
    (errors.BusyLoadingError, "it is loading its data"),
    (errors.ClusterError, "it runs in cluster mode, which is not supported"),
    (errors.MovedError, "it runs in cluster mode, which is not supported"),
    (errors.MaxConnectionsError, "it has as many connections as it may (maxclients)"),
    ("max number of clients", "it has as many connections as it may (maxclients)"),
    (
        "Connection reset",
        "the connection was closed, as by a server that expects TLS (rediss://)",
    ),
    (
        "wrong version number",
        "TLS: the server has none, and IMAGEPROMPT_REDIS_URL has rediss://",
    ),
    (errors.TimeoutError, "it did not answer in time, as a server without TLS to rediss://"),
    (TimeoutError, "it did not answer in time"),
    (ConnectionRefusedError, "nothing listens there (connection refused)"),
    ("refused", "nothing listens there (connection refused)"),
    ("Name or service not known", "its host name is unknown"),
    ("Temporary failure in name resolution", "its host name cannot be resolved"),
    ("Connection closed by server", "the server closed the connection"),
)


def explain(error: BaseException) -> str:
    """Why Redis did not do what it was asked, for a log line: no secret and no address in it."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"TLS: the server's certificate is not accepted ({one.verify_message})"
    for one in chain:
        if isinstance(one, ssl.SSLError) and one.reason != "WRONG_VERSION_NUMBER":
            return f"TLS: {str(one.reason or 'the handshake failed').replace('_', ' ').lower()}"
    for sign, cause in _CAUSES:
        for one in chain:
            if sign in str(one) if isinstance(sign, str) else isinstance(one, sign):
                return cause
    return type(error).__name__


def is_full(error: object) -> bool:
    """Whether Redis refused a write for lack of memory, of a command or inside a script."""
    return isinstance(error, errors.OutOfMemoryError) or "-OOM " in str(error)


def is_wrong_type(error: object) -> bool:
    """Whether a key holds another type than this service writes there."""
    return isinstance(error, errors.ResponseError) and "WRONGTYPE" in str(error)


@contextmanager
def wrong_type_is_absent() -> Iterator[None]:
    """Leave the context where a key holds another type, as if there were no key."""
    try:
        yield
    except errors.ResponseError as error:
        if not is_wrong_type(error):
            raise


def readable(answers: Iterable[Any]) -> list[Any]:
    """The answers of a pipeline; `None` for each key of another type. Raises any other error."""
    found = [None if is_wrong_type(answer) else answer for answer in answers]
    for answer in found:
        if isinstance(answer, Exception):
            raise answer
    return found


def is_read_only(error: object) -> bool:
    """Whether a replica refused a write, of a command or inside a script."""
    return isinstance(error, errors.ReadOnlyError) or "-READONLY " in str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What `INFO` says of a server; what an older or restricted one does not say is the default."""

    mode: str = "standalone"
    role: str = "master"
    eviction_policy: str = "noeviction"
    used_bytes: int = 0
    max_bytes: int = 0
    """`maxmemory`; 0 where there is no limit."""
    evicted_keys: int = 0

    @classmethod
    def parse(cls, info: Mapping[str, Any]) -> "ServerInfo":
        """The parts of `INFO` that matter."""
        return cls(
            mode=str(info.get("redis_mode", "standalone")),
            role=str(info.get("role", "master")),
            eviction_policy=str(info.get("maxmemory_policy", "noeviction")),
            used_bytes=int(info.get("used_memory", 0)),
            max_bytes=int(info.get("maxmemory", 0)),
            evicted_keys=int(info.get("evicted_keys", 0)),
        )

    @property
    def evicts(self) -> bool:
        """Whether it deletes keys, accepted jobs among them, when its memory is full."""
        return self.eviction_policy != "noeviction"

    @property
    def read_only(self) -> bool:
        """Whether it is a replica."""
        return self.role != "master"

    @property
    def has_headroom(self) -> bool:
        """Whether new jobs fit beside what accepted ones still need."""
        return not self.max_bytes or self.used_bytes < (1 - HEADROOM) * self.max_bytes

    @property
    def supported(self) -> bool:
        """Whether it is one Redis, neither a cluster nor a Sentinel."""
        return self.mode == "standalone"

    @property
    def refuses_writes(self) -> bool:
        """Whether writes fail now."""
        return self.read_only or 0 < self.max_bytes <= self.used_bytes

    @property
    def unfit(self) -> str | None:
        """Why no job can be accepted now; `None` where one can."""
        if self.read_only:
            return "Redis is a read-only replica"
        if not self.has_headroom:
            return "Redis is full"
        return None


def check(redis: Redis) -> ServerInfo:
    """Look at the server before the first job.

    Raises `ConfigurationError` for a cluster or a Sentinel, `RedisError` where it does not answer.
    What may lose or refuse jobs later is logged.
    """
    try:
        info = ServerInfo.parse(redis.info())
    except errors.NoPermissionError:
        logger.warning("Redis not checked: its user may not call INFO")
        return ServerInfo()
    refuse_unsupported(info)
    warn(info)
    return info


def refuse_unsupported(info: ServerInfo) -> None:
    """Raise `ConfigurationError` for a server in a mode that would accept jobs and lose them."""
    if info.mode == "cluster":
        raise ConfigurationError(
            "Redis runs in cluster mode (cluster-enabled yes), which is not supported, since a "
            "job's keys would lie on different nodes. Use a Redis without cluster mode"
        )
    if info.mode == "sentinel":
        raise ConfigurationError(
            "IMAGEPROMPT_REDIS_URL names a Sentinel, which is not supported. Give the address of "
            "the primary, or of a proxy or service name that follows it"
        )


def warn(info: ServerInfo) -> None:
    """Log what may lose or refuse jobs."""
    if info.evicts:
        logger.warning(
            "Redis may delete accepted jobs when it is full; set maxmemory-policy noeviction",
            maxmemory_policy=info.eviction_policy,
            maxmemory_bytes=info.max_bytes,
        )
    if info.unfit:
        logger.warning("no job can be accepted", cause=info.unfit)
