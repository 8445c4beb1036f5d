"""`imageprompt generate` and `imageprompt demo`: submit jobs, show progress, save pictures."""

import inspect
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from imageprompt import Client, ClientError, Job, JobFailed, Unavailable
from service.cli.jobs import Key, Url, connect
from service.cli.up import running
from service.core.param_types import OutputFormat
from service.core.params import GenerateRequest
from service.core.schema import Declaration, Files, is_list, marked, parameters
from service.core.settings import ROOT

EXAMPLES: Final = ROOT / "examples"
UNAVAILABLE_SECONDS: Final = 60.0
"""How long a service that does not respond is polled for a job that it has accepted."""
CELL_PIXELS: Final = 256
CAPTION_PIXELS: Final = 22

console = Console(stderr=True)


def targets(out: Path, count: int) -> list[Path]:
    """Name the files of `count` pictures: `out.png`, or `out-0.png`, `out-1.png` and so on."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(count)]


class JobInterrupted(Exception):
    """Raised where Ctrl-C ended the wait for a job; the message names the job."""


def run(client: Client, fields: Mapping[str, Any], *, label: str) -> Job:
    """Submit a job and follow it with a progress bar; Ctrl-C cancels it.

    Raises `ClientError` where it fails, and `JobInterrupted`.
    """
    job = client.generate(**fields)
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
        options["output_format"] = options["output_format"] or _format(out)
        with connect(url, key) as client:
            job = run(client, options, label=out.name)
            for number, target in enumerate(targets(out, len(job.images))):
                target.write_bytes(client.picture(job, number))
                console.print(f"{target}  seed {job.images[number].seed}")
        if job_json is not None:
            _write_json(job, job_json)

    generate.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
        [*_upload_parameters(declaration), *_option_parameters(declaration), *_OWN_PARAMETERS]
    )
    return generate


def _write_json(job: Job, file: Path) -> None:
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
    """Required uploads are arguments. `--control-image` may be shortened to `--control`."""
    found = []
    for name, limit in marked(declaration, Files).items():
        text = _help(declaration.model_fields[name].description)
        if limit.at_least:
            argument = typer.Argument(help=text, exists=True, dir_okay=False, metavar=name.upper())
            parameter = inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=Annotated[list[Path], argument],
            )
            found.append(parameter)
            continue
        long = f"--{name.replace('_', '-')}"
        names = dict.fromkeys((long, long.removesuffix("-image")))
        option = typer.Option(*names, help=text, exists=True, dir_okay=False)
        found.append(_keyword(name, Annotated[list[Path] | None, option]))
    return found


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


def _format(out: Path) -> OutputFormat:
    kinds = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    kind = kinds.get(out.suffix.lower())
    if kind is None:
        raise typer.BadParameter(
            f"--out: {out.name} must end in one of {', '.join(kinds)}, or set --output-format"
        )
    return OutputFormat(kind)


@dataclass(frozen=True)
class DemoJob:
    """One job of the demo; files are of `examples/`."""

    name: str
    title: str
    image: str
    fields: dict[str, Any] = field(default_factory=dict)
    control: str | None = None

    @property
    def uploads(self) -> dict[str, list[Path]]:
        """The files of the job by the names of their fields."""
        control = [EXAMPLES / self.control] if self.control else []
        return {"image": [EXAMPLES / self.image], "control_image": control}


DEMO_JOBS: Final = (
    DemoJob("1-image", "image prompt", "red-star.png", {"seed": 1}),
    DemoJob(
        "2-image-and-text",
        "image + text",
        "blue-ring.png",
        {"seed": 2, "prompt": "on a pink background"},
    ),
    DemoJob(
        "3-image-and-map",
        "image + map",
        "green-square.png",
        {"seed": 3},
        control="triangle-outline.png",
    ),
    DemoJob("4-image-again", "image again", "red-star.png", {"seed": 4}),
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures and job JSON.")] = Path("out"),
) -> None:
    """Start the service, generate four pictures, show what happened, and stop it."""
    # Raises ClientError where a job fails or the repeated one does not hit the embedding cache.
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="imageprompt-") as data,
        running(Path(data), port=0, workers=1, console=console) as service,
        Client(service.url) as client,
    ):
        console.print(f"service ready at {service.url}")
        jobs = [_run_demo(client, job, out) for job in DEMO_JOBS]
    _sheet(out).save(out / "sheet.png")
    console.print(_table(jobs))
    console.print(f"pictures, job JSON and sheet.png in {out.resolve()}")
    if jobs[-1].raw["metrics"]["image_embedding_cache"] != "hit":
        raise ClientError("the repeated image prompt was encoded again instead of cached")


def _run_demo(client: Client, demo_job: DemoJob, out: Path) -> Job:
    job = run(client, {**demo_job.uploads, **demo_job.fields}, label=demo_job.title)
    (out / f"{demo_job.name}.png").write_bytes(client.picture(job, 0))
    _write_json(job, out / f"{demo_job.name}.json")
    return job


def _table(jobs: list[Job]) -> Table:
    stages = ("queue", "encode", "denoise", "decode", "upload", "total")
    table = Table("job", "cache", *stages, title="Seconds per stage")
    for demo_job, job in zip(DEMO_JOBS, jobs, strict=True):
        metrics = job.raw["metrics"]
        seconds = (f"{metrics[f'{stage}_seconds']:.2f}" for stage in stages)
        table.add_row(demo_job.title, metrics["image_embedding_cache"], *seconds)
    return table


def _sheet(out: Path) -> Image.Image:
    """One row per job: image prompt, ControlNet map (or nothing), result."""
    height = CELL_PIXELS + CAPTION_PIXELS
    sheet = Image.new("RGB", (3 * CELL_PIXELS, len(DEMO_JOBS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, job in enumerate(DEMO_JOBS):
        text = job.fields.get("prompt")
        caption = f"{job.title}{f': {text}' if text else ''}"
        draw.text((4, row * height + 5), caption, fill="black")
        control = EXAMPLES / job.control if job.control else None
        for column, path in enumerate((EXAMPLES / job.image, control, out / f"{job.name}.png")):
            if path is not None:
                picture = Image.open(path).convert("RGB").resize((CELL_PIXELS, CELL_PIXELS))
                sheet.paste(picture, (column * CELL_PIXELS, row * height + CAPTION_PIXELS))
    return sheet
