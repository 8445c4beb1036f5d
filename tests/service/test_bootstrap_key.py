"""A first key from a mounted Secret: nobody has to run a command in a pod."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from redis import Redis

from service.api_keys import BOOTSTRAP
from service.core import redis_keys
from service.core.settings import Settings
from tests.running import Running


def test_an_api_with_a_bootstrap_key_serves_from_the_start(
    make_api: Callable[..., Running], redis: Redis, redis_url: str, storage_url: str, tmp_path: Path
) -> None:
    """On every address, and only those who have the key, though anonymous use is allowed."""
    key = f"ip_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    (tmp_path / "imageprompt_bootstrap_key").write_text(f"{key}\n")
    settings = {
        "IMAGEPROMPT_SECRETS_DIR": str(tmp_path),
        "redis_url": redis_url,
        "storage_url": storage_url,
        "host": "0.0.0.0",
        "allow_anonymous": True,
    }
    redis.delete(redis_keys.API_KEYS)
    try:
        with make_api(**settings) as first, make_api(**settings) as second:
            assert "127.0.0.1 only" not in first.log.read_text() + second.log.read_text()
            for running in (first, second):
                jobs = f"{running.url}/jobs"
                mine = {"authorization": f"Bearer {key}"}
                assert httpx.get(jobs, headers=mine, timeout=60).status_code == 200
                assert httpx.get(jobs, timeout=60).status_code == 401
            assert key not in first.log.read_text() + second.log.read_text()
        [record] = redis.hvals(redis_keys.API_KEYS)
        assert json.loads(record)["name"] == BOOTSTRAP
        assert key.encode() not in record
    finally:
        redis.delete(redis_keys.API_KEYS)


@pytest.mark.parametrize("key", ["secret", "ip_0123456789ab_short", ""])
def test_a_key_that_no_client_could_send_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(ValidationError, match="12 hexadecimal digits"):
        Settings(bootstrap_key=key)
