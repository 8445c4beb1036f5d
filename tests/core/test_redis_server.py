"""Redis as people run it is refused at start, or named with its cause."""

from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis, RedisError

from service.core.errors import ConfigurationError
from service.core.queue import connect
from service.core.redis_server import ServerInfo, check, explain
from tests import redis_kinds


def cause(url: str, call: Callable[[Redis], object]) -> str:
    """What is logged when a call fails."""
    client = connect(url)
    try:
        with pytest.raises(RedisError) as caught:
            call(client)
    finally:
        client.close()
    return explain(caught.value)


def write(redis: Redis) -> object:
    return redis.set("a", 1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"options": ("--cluster-enabled", "yes")}, "cluster mode"),
        ({"sentinel": True}, "Sentinel"),
    ],
)
def test_a_server_that_cannot_hold_jobs_is_refused_at_start(
    tmp_path: Path, kind: dict[str, object], words: str
) -> None:
    options = kind.pop("options", ())
    with (
        redis_kinds.server(tmp_path, *options, **kind) as port,
        Redis(port=port) as redis,
        pytest.raises(ConfigurationError, match=words),
    ):
        check(redis)


def test_a_replica_is_named(tmp_path: Path) -> None:
    with (
        redis_kinds.server(tmp_path / "primary") as primary,
        redis_kinds.server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(primary)) as port,
    ):
        assert "read-only replica" in cause(f"redis://127.0.0.1:{port}", write)
        with Redis(port=port) as redis:
            assert check(redis).unfit == "Redis is a read-only replica"


def test_a_full_server_is_named(tmp_path: Path) -> None:
    with redis_kinds.server(tmp_path) as port, Redis(port=port) as redis:
        assert check(redis).unfit is None
        redis_kinds.fill(redis)
        assert check(redis).unfit == "Redis is full"
        assert "full" in cause(f"redis://127.0.0.1:{port}", write)


def test_new_jobs_are_refused_before_it_is_full() -> None:
    """What is left is for jobs that were accepted."""
    assert ServerInfo(used_bytes=89, max_bytes=100).unfit is None
    assert ServerInfo(used_bytes=91, max_bytes=100).unfit == "Redis is full"
    assert ServerInfo(used_bytes=91, max_bytes=0).unfit is None


def test_a_server_that_may_delete_jobs_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--maxmemory-policy", "allkeys-lru")
    with redis_kinds.server(tmp_path, *options) as port, Redis(port=port) as redis:
        assert check(redis).evicts
    assert "maxmemory-policy noeviction" in capsys.readouterr().out


def test_a_wrong_password_is_named_and_not_shown(tmp_path: Path) -> None:
    with redis_kinds.server(tmp_path, "--requirepass", "right") as port:
        assert "demands a password" in cause(f"redis://127.0.0.1:{port}", write)
        wrong = cause(f"redis://:sesame@127.0.0.1:{port}", write)
    assert "password" in wrong
    assert "wrong" in wrong
    assert "sesame" not in wrong


@pytest.mark.parametrize("denied", ["hset", "lpos"])
def test_a_missing_permission_is_named_also_inside_a_script(tmp_path: Path, denied: str) -> None:
    with redis_kinds.server(tmp_path) as port, Redis(port=port) as redis:
        redis.execute_command("ACL", "SETUSER", "me", "on", ">pw", "~*", "+@all", f"-{denied}")
        url = f"redis://me:pw@127.0.0.1:{port}"
        script = f"return redis.call('{denied}', KEYS[1], 'a', 'b')"
        assert "permission" in cause(url, lambda client: client.eval(script, 1, "k"))
        assert "permission" in cause(
            url, lambda client: client.execute_command(denied, "k", "a", "b")
        )


def test_tls_errors_are_named(tmp_path: Path) -> None:
    with redis_kinds.server(tmp_path, tls=True) as port:
        assert "self-signed certificate" in cause(f"rediss://127.0.0.1:{port}", write)
        assert "TLS" in cause(f"redis://127.0.0.1:{port}", write)


def test_an_unreachable_server_is_named() -> None:
    assert "refused" in cause("redis://127.0.0.1:1", write)
    assert "unknown" in cause("redis://no-such-host.invalid:1", write)
