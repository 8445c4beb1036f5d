"""`imageprompt demo`: the whole service for a minute, four jobs, and what came of them."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from service.cli import generate
from service.cli.client import Client, ClientError, Job
from service.cli.up import running
from service.core.settings import ROOT

EXAMPLES: Final = ROOT / "examples"
CELL: Final = 256
CAPTION: Final = 22


@dataclass(frozen=True)
class Request:
    """One job of the demo."""

    name: str
    title: str
    image: str
    fields: dict[str, Any]
    control: str | None = None


REQUESTS: Final = (
    Request("1-image", "image prompt", "red-star.png", {"seed": 1}),
    Request(
        "2-image-and-text",
        "image + text",
        "blue-ring.png",
        {"seed": 2, "prompt": "on a pink background"},
    ),
    Request(
        "3-image-and-map",
        "image + map",
        "green-square.png",
        {"seed": 3},
        control="triangle-outline.png",
    ),
    Request("4-image-again", "image again", "red-star.png", {"seed": 4}),
)


def demo(out: Path, console: Console) -> None:
    """Run every request and write its picture and job JSON to `out`.

    Raises `ClientError` where one fails or the repeat does not hit the embedding cache,
    `StartError` where the service does not come up.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="imageprompt-") as data,
        running(Path(data), port=0, workers=1, console=console) as service,
        Client(service.url) as client,
    ):
        console.print(f"service ready at {service.url}")
        jobs = [_run(client, request, out) for request in REQUESTS]
    _sheet([out / f"{request.name}.png" for request in REQUESTS]).save(out / "sheet.png")
    console.print(_table(jobs))
    console.print(f"pictures, job JSON and sheet.png in {out.resolve()}")
    if jobs[-1]["metrics"]["image_embedding_cache"] != "hit":
        raise ClientError("the repeated image prompt was encoded again instead of cached")


def _run(client: Client, request: Request, out: Path) -> Job:
    control = EXAMPLES / request.control if request.control else None
    job = generate.run(
        client, [EXAMPLES / request.image], control, request.fields, label=request.title
    )
    (out / f"{request.name}.png").write_bytes(client.picture(job, 0))
    (out / f"{request.name}.json").write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
    return job


def _table(jobs: list[Job]) -> Table:
    stages = ("queue", "encode", "denoise", "decode", "upload", "total")
    table = Table("job", "cache", *stages, title="What happened (seconds)")
    for request, job in zip(REQUESTS, jobs, strict=True):
        metrics = job["metrics"]
        seconds = (f"{metrics[f'{stage}_seconds']:.2f}" for stage in stages)
        table.add_row(request.title, metrics["image_embedding_cache"], *seconds)
    return table


def _sheet(results: list[Path]) -> Image.Image:
    """One row a request: image prompt, ControlNet map (or nothing), result."""
    sheet = Image.new("RGB", (3 * CELL, len(results) * (CELL + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (request, result) in enumerate(zip(REQUESTS, results, strict=True)):
        top = row * (CELL + CAPTION)
        text = request.fields.get("prompt")
        draw.text((4, top + 5), f"{request.title}{f': {text}' if text else ''}", fill="black")
        cells = (
            EXAMPLES / request.image,
            EXAMPLES / request.control if request.control else None,
            result,
        )
        for column, path in enumerate(cells):
            if path is not None:
                picture = Image.open(path).convert("RGB").resize((CELL, CELL))
                sheet.paste(picture, (column * CELL, top + CAPTION))
    return sheet
