"""`imageprompt keys`: make, list and revoke API keys. Needs Redis alone, not a running API.

A key is shown once, when it is made; only its hash is kept.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Column, Table

from service import api_keys
from service.api_keys import ApiKey, Right
from service.cli.client import ClientError
from service.cli.up import DATA, REDIS_URL
from service.core.queue import connect
from service.core.settings import load_settings

DAY_SECONDS = 24 * 3600

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
console = Console()

RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis",
        help="URL of Redis; by default IMAGEPROMPT_REDIS_URL, or that of a running "
        "`imageprompt up` in this folder.",
    ),
]


def _default_url() -> str:
    settings, file = load_settings(), DATA / REDIS_URL
    if "redis_url" not in settings.model_fields_set and file.exists():
        return file.read_text(encoding="utf-8")
    return settings.redis_url.get_secret_value()


@contextmanager
def _redis(url: str | None) -> Iterator[Redis]:
    """A connection. Raises `ClientError` where Redis is away."""
    client = connect(url or _default_url())
    try:
        yield client
    except RedisError as error:
        raise ClientError(f"Redis does not answer: {error}") from None
    finally:
        client.close()


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.")],
    *,
    right: Annotated[
        list[Right] | None, typer.Option(help="What it may do; all by default.")
    ] = None,
    per_minute: Annotated[int | None, typer.Option(min=1, help="Requests a minute.")] = None,
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Jobs at once.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires.")] = None,
    redis: RedisUrl = None,
) -> None:
    """Make a key and print it as JSON; it is shown this once."""
    key, record = api_keys.make_key(
        name,
        rights=tuple(right or Right),
        requests_per_minute=per_minute,
        max_jobs=max_jobs,
        lifetime_seconds=None if days is None else days * DAY_SECONDS,
        now=time.time(),
    )
    with _redis(redis) as client:
        api_keys.save(client, record)
    shown = {"key": key, "id": record.id, "webhook_secret": record.webhook_secret}
    typer.echo(json.dumps(shown, indent=2))


@app.command("list")
def list_keys(*, redis: RedisUrl = None) -> None:
    """Show all keys, without what would let anybody in."""
    with _redis(redis) as client:
        records = api_keys.every(client)
    table = Table(
        Column("id", no_wrap=True), "name", "rights", "a minute", "jobs at once", "made", "expires"
    )
    for record in records:
        table.add_row(*_row(record))
    console.print(table)


def _row(record: ApiKey) -> tuple[str, ...]:
    return (
        record.id,
        record.name,
        " ".join(record.rights),
        str(record.requests_per_minute or "any"),
        str(record.max_jobs or "any"),
        _day(record.created_at),
        "never" if record.expires_at is None else _day(record.expires_at),
    )


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, from `imageprompt keys list`.")],
    *,
    redis: RedisUrl = None,
) -> None:
    """Let a key in no more; what it made stays until it expires."""
    with _redis(redis) as client:
        if not api_keys.revoke(client, key_id):
            raise ClientError(f"there is no key {key_id!r}; see `imageprompt keys list`")
    typer.echo(f"revoked {key_id}")
