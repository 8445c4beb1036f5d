"""`imageprompt generate` and `again`: submit a job, show its progress, save its pictures.

`again` takes the request from the recipe that a picture carries.
"""

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from imageprompt import Client, ClientError, Job, JobFailed, Unavailable
from service.cli.jobs import Key, Url, connect
from service.core.param_types import OutputFormat
from service.core.params import GenerateRequest
from service.core.picture_metadata import read_recipe
from service.core.schema import Declaration, Files, OnlyWith, is_list, marked, marker, parameters

UNAVAILABLE_SECONDS: Final = 60.0
"""How long a service that does not respond is polled for a job that it has accepted."""

console = Console(stderr=True)


def targets(out: Path, count: int) -> list[Path]:
    """Name the files of `count` pictures: `out.png`, or `out-0.png`, `out-1.png` and so on."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(count)]


class JobInterrupted(Exception):
    """Raised where Ctrl-C ended the wait for a job; the message names the job."""


def run(client: Client, fields: Mapping[str, Any], *, label: str) -> Job:
    """Submit a job and follow it to its end; Ctrl-C cancels it.

    Raises `ClientError` where it fails, and `JobInterrupted`.
    """
    return finished(client, client.generate(**fields), label=label)


def finished(client: Client, job: Job, *, label: str) -> Job:
    """Follow a job to its end with a progress bar. Raises as `run`."""
    try:
        job = _follow(client, job, label)
    except KeyboardInterrupt:
        raise JobInterrupted(f"interrupted; job {job.id} {client.cancel(job).status}") from None
    if job.status != "succeeded":
        raise JobFailed(job)
    return job


def _follow(client: Client, job: Job, label: str) -> Job:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(label, total=job.total_steps)
        for now in _watch(client, job):
            job = now
            ahead = f", {job.queue_position} ahead" if job.queue_position else ""
            bar.update(task, completed=job.step, description=f"{label}: {job.status}{ahead}")
    return job


def _watch(client: Client, job: Job) -> Iterator[Job]:
    """The job after each change, also where the service is restarted. Raises `Unavailable`."""
    responded_at = time.monotonic()
    while True:
        try:
            for changed in client.watch(job):
                job, responded_at = changed, time.monotonic()
                yield job
        except Unavailable:
            if time.monotonic() - responded_at > UNAVAILABLE_SECONDS:
                raise
        else:
            return


def command(declaration: Declaration = GenerateRequest) -> Callable[..., None]:
    """The command, with an argument or option for each declared upload and parameter."""

    def generate(
        out: Path, job_json: Path | None, url: str | None, key: str | None, **options: Any
    ) -> None:
        """Generate pictures from image prompts."""
        if not out.parent.is_dir():
            raise typer.BadParameter(f"--out: the folder {out.parent} does not exist")
        for name, limit in marked(declaration, Files).items():
            named = [*(options[name] or []), *(options.pop(f"{name}_url") or [])]
            if len(named) < limit.at_least:
                raise typer.BadParameter(f"{name.upper()} or {_url_option(name)} is needed")
            options[name] = named or None
        options["output_format"] = _format(out, options["output_format"])
        with connect(url, key) as client:
            job = run(client, options, label=out.name)
            for number, target in enumerate(targets(out, len(job.images))):
                target.write_bytes(client.picture(job, number))
                console.print(f"{target}  seed {job.images[number].seed}")
        if job_json is not None:
            write_json(job, job_json)

    generate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
        [*_upload_parameters(declaration), *_option_parameters(declaration), *_OWN_PARAMETERS]
    )
    return generate


def write_json(job: Job, file: Path) -> None:
    """Write a job as the service shows it."""
    file.write_text(json.dumps(job.raw, indent=2) + "\n", encoding="utf-8")


def _keyword(name: str, kind: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


_OWN_PARAMETERS: Final = (
    _keyword(
        "out",
        Annotated[Path, typer.Option("--out", "-o", help="File of the picture.")],
        inspect.Parameter.empty,
    ),
    _keyword(
        "job_json",
        Annotated[Path | None, typer.Option("--json", help="Write the finished job to this file.")],
    ),
    _keyword("url", Url),
    _keyword("key", Key),
)


def _upload_parameters(declaration: Declaration) -> list[inspect.Parameter]:
    """Files are arguments where they are required, else options, and URLs always options.

    `--control-image` may be shortened to `--control`.
    """
    required, optional = [], []
    for name, limit in marked(declaration, Files).items():
        text = _help(declaration.model_fields[name].description)
        if limit.at_least:
            argument = typer.Argument(help=text, exists=True, dir_okay=False, metavar=name.upper())
            parameter = inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=Annotated[list[Path] | None, argument],
                default=None,
            )
            required.append(parameter)
        else:
            long = f"--{name.replace('_', '-')}"
            names = dict.fromkeys((long, long.removesuffix("-image")))
            option = typer.Option(*names, help=text, exists=True, dir_okay=False)
            optional.append(_keyword(name, Annotated[list[Path] | None, option]))
        by_url = typer.Option(
            _url_option(name),
            help=f"`{name}` by https URL, where the operator allows that; files come first.",
            metavar="URL",
        )
        optional.append(_keyword(f"{name}_url", Annotated[list[str] | None, by_url]))
    return [*required, *optional]


def _url_option(name: str) -> str:
    return f"--{name.replace('_', '-')}-url"


def _option_parameters(declaration: Declaration) -> list[inspect.Parameter]:
    found = []
    for name, declared in parameters(declaration).items():
        kind: Any = str if is_list(declared) else _plain_type(declared.annotation)
        names = [f"--{name.replace('_', '-')}"]
        option = typer.Option(*names, help=_help(declared.description))
        found.append(_keyword(name, Annotated[kind | None, option]))
    return found


def _plain_type(annotation: Any) -> Any:
    """The type behind `X | None` and `Annotated`: one that typer can parse, else text."""
    while get_origin(annotation) is not None:
        choices = get_args(annotation)
        if get_origin(annotation) in (Union, UnionType):
            choices = tuple(one for one in choices if one is not NoneType)
        annotation = choices[0]
    if annotation in (int, float, bool) or issubclass(annotation, Enum):
        return annotation
    return str


def _help(description: str | None) -> str:
    return (description or "").replace("`", "")


def _format(out: Path, asked: OutputFormat | None) -> OutputFormat:
    kinds = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    kind = kinds.get(out.suffix.lower(), asked)
    if kind is None:
        raise typer.BadParameter(
            f"--out: {out.name} must end in one of {', '.join(kinds)}, or set --output-format"
        )
    if asked not in (None, kind):
        raise typer.BadParameter(f"--out: {out.name} is no name of a {asked} file")
    return OutputFormat(kind)


def again(
    picture: Annotated[
        Path,
        typer.Argument(
            help="A picture that this service made: PNG, JPEG or WebP.", exists=True, dir_okay=False
        ),
    ],
    uploads: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The files that it was made from, in any order; they are told by their content.",
            exists=True,
            dir_okay=False,
            metavar="IMAGE",
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File of the picture; PICTURE-again by default."),
    ] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Generate a picture again from what it says about itself."""
    target = out or picture.with_stem(f"{picture.stem}-again")
    if not target.parent.is_dir():
        raise typer.BadParameter(f"--out: the folder {target.parent} does not exist")
    recipe = _recipe(picture)
    files = _files(recipe, uploads or [])
    with connect(url, key) as client:
        job = run(client, {**files, **recipe_fields(recipe)}, label=target.name)
        made = client.picture(job, 0)
    target.write_bytes(made)
    same = "the same bytes" if made == picture.read_bytes() else "other bytes"
    console.print(f"{target}  {same} as {picture.name}", soft_wrap=True)


def _recipe(picture: Path) -> dict[str, Any]:
    try:
        with Image.open(picture, formats=["PNG", "JPEG", "WEBP"]) as image:
            recipe = read_recipe(image)
    except OSError:
        raise ClientError(f"{picture} is not a PNG, JPEG or WebP picture") from None
    if recipe is None:
        raise ClientError(
            f"{picture} carries no recipe: this service did not make it, or it lost its metadata"
        )
    return recipe


def recipe_fields(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of a recipe as the form takes them."""
    sent = {}
    for name, field in parameters(GenerateRequest).items():
        value, only = recipe.get(name), marker(field, OnlyWith)
        if value in (None, []) or (only is not None and not recipe.get(only.upload)):
            continue
        sent[name] = _text(value)
    return sent


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _files(recipe: Mapping[str, Any], given: Sequence[Path]) -> dict[str, list[Path]]:
    """The given files by the fields of the form. Raises `ClientError` naming those that lack."""
    known = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in given}
    found: dict[str, list[Path]] = {}
    absent = []
    for name in marked(GenerateRequest, Files):
        value = recipe.get(name) or []
        uploads = value if isinstance(value, list) else [value]
        for upload in uploads:
            path = known.get(upload["sha256"])
            if path is None:
                absent.append(f"{name} of {upload['width']} x {upload['height']} pixels")
            else:
                found.setdefault(name, []).append(path)
    if absent:
        raise ClientError(
            f"the picture was also made from files that were not given: {', '.join(absent)}; "
            "give the very files that were uploaded then"
        )
    used = {path for paths in found.values() for path in paths}
    if unused := [path.name for path in given if path not in used]:
        raise ClientError(f"the picture was not made from {', '.join(unused)}")
    return found
