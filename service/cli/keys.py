"""`imageprompt keys`: create, list and revoke API keys. Needs Redis, but no running API.

A key is shown once, when it is created; only its hash is stored.
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

from imageprompt import ClientError
from service import api_keys
from service.api_keys import ApiKey, Scope
from service.cli.up import DATA, KEY, REDIS_URL
from service.core.queue import connect
from service.core.settings import load_settings

DAY_SECONDS = 24 * 3600

app = typer.Typer()
console = Console()


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Create, list and revoke API keys."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis",
        help="URL of Redis; by default IMAGEPROMPT_REDIS_URL, or that of a running "
        "`imageprompt up` in this folder.",
    ),
]


def _local_url() -> str | None:
    """Redis of a running `imageprompt up` in this folder, where no setting names another."""
    settings, file = load_settings(), DATA / REDIS_URL
    if "redis_url" not in settings.model_fields_set and file.exists():
        return file.read_text(encoding="utf-8")
    return None


@contextmanager
def _redis(url: str | None) -> Iterator[Redis]:
    """A connection. Raises `ClientError` where Redis does not respond."""
    client = connect(url or _local_url() or load_settings().redis_url.get_secret_value())
    try:
        yield client
    except RedisError as error:
        raise ClientError(f"Redis does not respond: {error}") from None
    finally:
        client.close()


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the owner, for display.")],
    *,
    scope: Annotated[
        list[Scope] | None,
        typer.Option("--scope", "--right", help="What the key may do; everything by default."),
    ] = None,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Limit of requests per minute.")
    ] = None,
    max_jobs: Annotated[
        int | None, typer.Option(min=1, help="Limit of jobs queued or running at once.")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires.")] = None,
    redis: RedisUrl = None,
) -> None:
    """Create a key and print it as JSON; it cannot be shown again.

    The first one of a running `imageprompt up` in this folder is kept beside its data, where the
    commands of this folder find it.
    """
    key, record = api_keys.make_key(
        name,
        scopes=tuple(scope or Scope),
        requests_per_minute=per_minute,
        max_jobs=max_jobs,
        lifetime_seconds=None if days is None else days * DAY_SECONDS,
        now=time.time(),
    )
    with _redis(redis) as client:
        api_keys.save(client, record)
    shown = {"key": key, "id": record.id, "webhook_secret": record.webhook_secret}
    typer.echo(json.dumps(shown, indent=2))
    if redis is None and _local_url() is not None and not (DATA / KEY).exists():
        (DATA / KEY).touch(mode=0o600)
        (DATA / KEY).write_text(json.dumps({"id": record.id, "key": key}), encoding="utf-8")
        typer.echo(f"kept in {DATA / KEY}, where the commands of this folder find it", err=True)


@app.command("list")
def list_keys(*, redis: RedisUrl = None) -> None:
    """List all keys, without their secrets."""
    with _redis(redis) as client:
        records = api_keys.list_keys(client)
    table = Table(
        Column("id", no_wrap=True),
        "name",
        "scopes",
        "per minute",
        "jobs at once",
        "created",
        "expires",
    )
    for record in records:
        table.add_row(*_row(record))
    console.print(table)


def _row(record: ApiKey) -> tuple[str, ...]:
    return (
        record.id,
        record.name,
        " ".join(record.scopes),
        str(record.requests_per_minute or "no limit"),
        str(record.max_jobs or "no limit"),
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
    """Revoke a key; its jobs and pictures stay until they expire."""
    with _redis(redis) as client:
        if not api_keys.revoke(client, key_id):
            raise ClientError(f"there is no key {key_id!r}; see `imageprompt keys list`")
    kept = DATA / KEY
    if kept.exists() and json.loads(kept.read_text(encoding="utf-8"))["id"] == key_id:
        kept.unlink()
    typer.echo(f"revoked {key_id}")
