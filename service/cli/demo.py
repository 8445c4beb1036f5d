"""`imageprompt demo`: one job of every kind, and a sheet that shows what each was made from."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Column, Table

from imageprompt import Client, ClientError, Job
from service.cli.generate import finished, write_json
from service.cli.up import running
from service.core.settings import ROOT

EXAMPLES: Final = ROOT / "examples"
COLUMNS: Final = 2
CELL: Final = 144
"""Side of a picture in the sheet, in pixels."""
MARGIN: Final = 24
ARROW: Final = 44
LINES: Final = 52
"""Height of a job's title and what it says below it."""
CAPTION: Final = 20
MOST_INPUTS: Final = 3

console = Console(stderr=True)


@dataclass(frozen=True)
class DemoJob:
    """One job of the demo.

    `uploads` are files of `examples/` by their fields, and `captions` what the sheet calls them.
    """

    name: str
    title: str
    text: str
    uploads: Mapping[str, Sequence[str]]
    captions: Sequence[str]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, list[Path]]:
        """The uploads as files."""
        return {name: [EXAMPLES / file for file in files] for name, files in self.uploads.items()}

    @property
    def pictures(self) -> list[Path]:
        """All of them, in the order of `captions`."""
        return [path for files in self.files.values() for path in files]


DEMO_JOBS: Final = (
    DemoJob(
        "1-image",
        "Image prompt",
        "a picture in place of a text",
        {"image": ["red-star.png"]},
        ["image prompt"],
        {"seed": 1},
    ),
    DemoJob(
        "2-image-and-text",
        "Image prompt and text",
        "“on a pink background” changes what the picture leaves to it",
        {"image": ["blue-ring.png"]},
        ["image prompt"],
        {"seed": 2, "prompt": "on a pink background"},
    ),
    DemoJob(
        "3-image-and-map",
        "Image prompt and map",
        "the map sets the outline, the image prompt everything else",
        {"image": ["green-square.png"], "control_image": ["triangle-outline.png"]},
        ["image prompt", "map"],
        {"seed": 3},
    ),
    DemoJob(
        "4-two-maps",
        "Two maps",
        "each map sets a half of the outline",
        {"image": ["green-square.png"], "control_image": ["left-outline.png", "right-outline.png"]},
        ["image prompt", "first map", "second map"],
        {"seed": 4},
    ),
    DemoJob(
        "5-image-to-image",
        "Image-to-image",
        "starts from a picture and keeps its place",
        {"image": ["red-star.png"], "init_image": ["yellow-cross.png"]},
        ["image prompt", "starts from"],
        {"seed": 4, "strength": 0.6},
    ),
    DemoJob(
        "6-inpainting",
        "Inpainting",
        "only what is white in the mask is painted anew",
        {
            "image": ["red-star.png"],
            "init_image": ["green-square.png"],
            "mask_image": ["disc-mask.png"],
        },
        ["image prompt", "changes", "mask"],
        {"seed": 8, "prompt": "on a pink background"},
    ),
    DemoJob(
        "7-style",
        "Style only",
        "colours of the image prompt, the rest is the text: “a star”",
        {"image": ["blue-ring.png"]},
        ["image prompt"],
        {"seed": 3, "prompt": "a star", "ip_target": "style", "ip_scale": 1},
    ),
    DemoJob(
        "8-mask",
        "Image prompt with a mask",
        "it acts where the mask is white",
        {"image": ["red-star.png"], "image_mask": ["left-mask.png"]},
        ["image prompt", "acts here"],
        {"seed": 5},
    ),
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures and job JSON.")] = Path("out"),
) -> None:
    """Start the service, generate a picture of every kind, show them in a sheet, and stop it."""
    # Raises ClientError where a job fails or a repeated picture does not hit the embedding cache.
    out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="imageprompt-") as data,
        running(Path(data), port=0, workers=1, console=console) as service,
        Client(service.url) as client,
    ):
        console.print(f"service ready at {service.url}")
        first, *others = DEMO_JOBS
        done = {first.name: finished(client, _submit(client, first), label=first.title)}
        # The others share batches.
        submitted = [(one, _submit(client, one)) for one in others]
        for one, sent in submitted:
            done[one.name] = finished(client, sent, label=one.title)
        for name, job in done.items():
            (out / f"{name}.png").write_bytes(client.picture(job, 0))
            write_json(job, out / f"{name}.json")
    sheet(out).save(out / "sheet.png", optimize=True)
    console.print(_table(done))
    console.print(f"pictures, job JSON and sheet.png in {out.resolve()}")
    if done["8-mask"].raw["metrics"]["image_embedding_cache"] != "hit":
        raise ClientError("the repeated image prompt was encoded again instead of cached")


def _submit(client: Client, job: DemoJob) -> Job:
    sent: dict[str, Any] = {**job.files, **job.fields}
    return client.generate(**sent)


def _table(jobs: Mapping[str, Job]) -> Table:
    stages = ("queue", "encode", "denoise", "decode", "upload", "total")
    title = Column("job", no_wrap=True)
    table = Table(title, "batch", "cache", *stages, title="Seconds per stage")
    for demo_job in DEMO_JOBS:
        metrics = jobs[demo_job.name].raw["metrics"]
        seconds = (f"{metrics[f'{stage}_seconds']:.2f}" for stage in stages)
        table.add_row(
            demo_job.title, str(metrics["max_batch"]), metrics["image_embedding_cache"], *seconds
        )
    return table


def sheet(out: Path) -> Image.Image:
    """What every job was made from and what came of it, as read from the folder `out`."""
    width = MOST_INPUTS * (CELL + MARGIN // 2) + ARROW + CELL
    height = LINES + CELL + CAPTION
    rows = -(-len(DEMO_JOBS) // COLUMNS)
    whole = (COLUMNS * (width + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN)
    page = Image.new("RGB", whole, "white")
    for number, job in enumerate(DEMO_JOBS):
        row, column = divmod(number, COLUMNS)
        left, top = MARGIN + column * (width + MARGIN), MARGIN + row * (height + MARGIN)
        _draw(page, job, out / f"{job.name}.png", left, top)
    return page


def _draw(page: Image.Image, job: DemoJob, result: Path, left: int, top: int) -> None:
    """A job with its left upper corner there."""
    draw = ImageDraw.Draw(page)
    title, small = ImageFont.load_default(20), ImageFont.load_default(13)
    draw.text((left, top), job.title, fill="black", font=title)
    draw.text((left, top + 27), job.text, fill="dimgray", font=small)
    top += LINES
    for path, caption in zip(job.pictures, job.captions, strict=True):
        _paste(page, path, caption, left, top)
        left += CELL + MARGIN // 2
    middle, tip = top + CELL // 2, left + ARROW - MARGIN
    draw.line((left, middle, tip, middle), fill="black", width=3)
    draw.polygon((tip, middle - 6, tip, middle + 6, tip + 9, middle), fill="black")
    _paste(page, result, "result", left + ARROW - MARGIN // 2, top)


def _paste(page: Image.Image, path: Path, caption: str, left: int, top: int) -> None:
    draw, small = ImageDraw.Draw(page), ImageFont.load_default(13)
    with Image.open(path) as picture:
        page.paste(picture.convert("RGB").resize((CELL, CELL)), (left, top))
    # Maps and masks are black or white at their edges, as the page is.
    draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline="silver")
    draw.text((left, top + CELL + 3), caption, fill="dimgray", font=small)
