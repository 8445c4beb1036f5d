"""`imageprompt jobs`, `show`, `cancel`, `delete`, and how every command reaches the service."""

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from imageprompt import Client, Job
from service.cli.up import API_URL, DATA, KEY

DEFAULT_URL: Final = "http://127.0.0.1:8000"
Url = Annotated[
    str | None,
    typer.Option(
        envvar="IMAGEPROMPT_URL",
        help=f"Address of the service; by default that of a running `imageprompt up` whose data is "
        f"in ./{DATA}, else {DEFAULT_URL}.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        envvar="IMAGEPROMPT_KEY",
        help=f"API key; by default the one that `imageprompt keys create` left in ./{DATA}.",
    ),
]
JobId = Annotated[str, typer.Argument(help="The job's id.")]


def connect(url: str | None, key: str | None) -> Client:
    """A client of the service that the options, or the files of a running `up`, name."""
    return Client(*reach(url, key))


def reach(url: str | None, key: str | None) -> tuple[str, str | None]:
    """Address and key. The key in the data folder goes to the service of that folder only."""
    local = _content(DATA / API_URL)
    address = url or local or DEFAULT_URL
    if key is None and address == local:
        saved = _content(DATA / KEY)
        key = json.loads(saved)["key"] if saved else None
    return address, key


def _content(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def jobs(
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many jobs at most.")] = 20,
    url: Url = None,
    key: Key = None,
) -> None:
    """List your jobs, newest first."""
    with connect(url, key) as client:
        for job in islice(client.jobs(), limit):
            typer.echo(_line(job))


def _line(job: Job) -> str:
    """Whole in every terminal and pipe: nothing is cut off."""
    sent: dict[str, Any] = job.raw["input"]
    created = str(job.raw["created_at"])[:19].replace("T", " ")
    about = f"{sent['model']}  seed {sent['seed']}  pictures {len(job.images)}"
    return f"{job.id}  {job.status:<10}  {created}  {about}"


def show(job_id: JobId, *, url: Url = None, key: Key = None) -> None:
    """Print a job as JSON."""
    with connect(url, key) as client:
        typer.echo(json.dumps(client.job(job_id).raw, indent=2))


def cancel(job_id: JobId, *, url: Url = None, key: Key = None) -> None:
    """Cancel a job; one that has ended stays as it is."""
    with connect(url, key) as client:
        typer.echo(f"{job_id}  {client.cancel(job_id).status}")


def delete(
    job_ids: Annotated[list[str], typer.Argument(help="The jobs' ids.", metavar="JOB_ID")],
    *,
    url: Url = None,
    key: Key = None,
) -> None:
    """Delete jobs that have ended, with their uploads and pictures."""
    with connect(url, key) as client:
        for job_id in job_ids:
            client.delete(job_id)
            typer.echo(f"{job_id}  deleted")
