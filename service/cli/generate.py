"""`imageprompt generate`: send one job, show how it goes, save its pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.cli.client import Client, ClientError, Job
from service.core.params import Crop, OutputFormat, SchedulerName

console = Console(stderr=True)


def targets(out: Path, count: int) -> list[Path]:
    """Name the files of `count` pictures: `out.png`, or `out-0.png`, `out-1.png` and so on."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(count)]


def run(
    client: Client,
    images: Sequence[Path],
    control: Path | None,
    fields: Mapping[str, object],
    *,
    label: str,
) -> Job:
    """Send a job and follow it with a progress bar. Raises `ClientError` where it fails."""
    job = client.submit(images, control, fields)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(label, total=job["progress"]["total"])
        for now in client.watch(job):
            job = now
            ahead = f", {job['queue_position']} ahead" if job["queue_position"] else ""
            bar.update(
                task,
                completed=job["progress"]["step"],
                description=f"{label}: {job['status']}{ahead}",
            )
    if job["status"] != "succeeded":
        error = job["error"] or {"title": job["status"], "detail": ""}
        raise ClientError(f"job {job['id']} {job['status']}: {error['title']}. {error['detail']}")
    return job


def generate(  # one parameter a field of POST /generate
    images: Annotated[
        list[Path],
        typer.Argument(help="Image prompts, 1 to 8.", exists=True, dir_okay=False, metavar="IMAGE"),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the picture goes.")],
    prompt: Annotated[str | None, typer.Option(help="What else to show.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to show.")] = None,
    control: Annotated[
        Path | None, typer.Option(help="ControlNet map.", exists=True, dir_okay=False)
    ] = None,
    control_type: Annotated[str | None, typer.Option(help="Which ControlNet.")] = None,
    control_scale: Annotated[float | None, typer.Option(help="0 to 2.")] = None,
    control_start: Annotated[float | None, typer.Option(help="0 to 1.")] = None,
    control_end: Annotated[float | None, typer.Option(help="0 to 1.")] = None,
    image_weights: Annotated[
        str | None, typer.Option(help="One number an image, comma-separated.")
    ] = None,
    ip_scale: Annotated[float | None, typer.Option(help="Weight of the images, 0 to 2.")] = None,
    crop: Annotated[Crop | None, typer.Option(help="For images that are not square.")] = None,
    model: Annotated[str | None, typer.Option()] = None,
    adapter: Annotated[str | None, typer.Option()] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    steps: Annotated[int | None, typer.Option(help="1 to 100.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="0 to 20.")] = None,
    guidance_end: Annotated[
        float | None, typer.Option(help="0 to 1; guidance is off after that part of the steps.")
    ] = None,
    scheduler: Annotated[SchedulerName | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(help="Drawn where absent.")] = None,
    num_images: Annotated[int | None, typer.Option(help="1 to 4.")] = None,
    output_format: Annotated[
        OutputFormat | None, typer.Option(help="By the ending of --out where absent.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same input, same bytes.")
    ] = False,
    job_json: Annotated[
        Path | None, typer.Option("--json", help="Write the finished job here as JSON.")
    ] = None,
    url: Annotated[
        str, typer.Option(envvar="IMAGEPROMPT_URL", help="The service.")
    ] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(envvar="IMAGEPROMPT_KEY", help="API key.")] = None,
) -> None:
    """Make a picture from image prompts."""
    fields: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "control_type": control_type,
        "control_scale": control_scale,
        "control_start": control_start,
        "control_end": control_end,
        "image_weights": image_weights,
        "ip_scale": ip_scale,
        "crop": crop,
        "model": model,
        "adapter": adapter,
        "width": width,
        "height": height,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "guidance_end": guidance_end,
        "scheduler": scheduler,
        "seed": seed,
        "num_images": num_images,
        "output_format": output_format or _format(out),
        "deterministic": "true" if deterministic else None,
    }
    if not out.parent.is_dir():
        raise typer.BadParameter(f"--out: the folder {out.parent} does not exist")
    with Client(url, key) as client:
        job = run(client, images, control, fields, label=out.name)
        for number, target in enumerate(targets(out, len(job["images"]))):
            target.write_bytes(client.picture(job, number))
            console.print(f"{target}  seed {job['images'][number]['seed']}")
    if job_json is not None:
        job_json.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")


def _format(out: Path) -> OutputFormat:
    kinds = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    kind = kinds.get(out.suffix.lower())
    if kind is None:
        raise typer.BadParameter(
            f"--out: {out.name} ends in none of {', '.join(kinds)}; or give --output-format"
        )
    return OutputFormat(kind)
