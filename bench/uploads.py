"""`python -m bench.uploads`: what reading an upload costs, and what a separate process adds to it.

Writes out/bench/uploads.md. Each kind of picture is decoded by Pillow alone, normalised in this
process, and normalised by a decoder process as the API does it, in turns; CPU time of both
processes counts; medians of all turns, of the decoder process the mean.
"""

import argparse
import asyncio
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pillow_heif
from PIL import Image, ImageChops

from service.core.upload_types import Picture, UploadKind
from service.submission import images
from service.submission.colour import rgb_profile
from service.submission.decoder import UploadDecoder

OUT: Final = Path("out/bench")
MAX_PIXELS: Final = 40_000_000
DISPLAY_P3: Final = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
SRGB_CURVE: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of CPU time for one kind of upload, and bytes."""

    name: str
    sent_bytes: int
    pillow_ms: float
    here_ms: float
    decoder_ms: float
    api_ms: float
    stored_as: str
    stored_bytes: int


def photograph(width: int, height: int) -> Image.Image:
    """A picture that compresses as photographs do: soft shapes and some grain."""
    soft = [
        Image.effect_noise((width // 8, height // 8), 80).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for _ in range(3)
    ]
    grain = Image.merge("RGB", [Image.effect_noise((width, height), 6)] * 3)
    return ImageChops.add(Image.merge("RGB", soft), grain, offset=-128)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a picture in the format `kind`."""
    out = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(out, quality=80)
    else:
        image.save(out, kind, **options)
    return out.getvalue()


def uploads(image: Image.Image) -> dict[str, bytes]:
    """The same picture as people send it."""
    turned = Image.Exif()
    turned[0x0112] = 6
    p3 = rgb_profile(DISPLAY_P3, SRGB_CURVE)
    return {
        "JPEG": saved(image, "JPEG", quality=88),
        "JPEG, turned": saved(image, "JPEG", quality=88, exif=turned),
        "JPEG, Display P3": saved(image, "JPEG", quality=88, icc_profile=p3),
        "PNG": saved(image, "PNG"),
        "PNG with alpha": saved(image.convert("RGBA"), "PNG"),
        "WebP": saved(image, "WEBP", quality=85),
        "AVIF": saved(image, "AVIF", speed=9),
        "HEIC": saved(image, "HEIF"),
    }


def cpu_ms(action: Callable[[], object]) -> float:
    """CPU time of an action in this process."""
    began = time.process_time()
    action()
    return 1e3 * (time.process_time() - began)


def pillow(data: bytes) -> bytes:
    """What any reader has to do: decode all pixels."""
    if data[4:8] == b"ftyp" and b"hei" in data[8:24]:
        opened: Image.Image = pillow_heif.HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]  # upstream's
    else:
        opened = Image.open(io.BytesIO(data))
    return opened.convert("RGB").tobytes()


def normalise(data: bytes) -> Picture:
    """What a decoder process does, in this one."""
    return images.normalise(data, io.BytesIO(), kind=UploadKind.PICTURE, max_pixels=MAX_PIXELS)


def children_cpu_seconds() -> float:
    """CPU time of all processes that this one has started and that are still there."""
    tasks = Path("/proc/self/task").iterdir()
    pids = [pid for task in tasks for pid in (task / "children").read_text().split()]
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


async def measure(name: str, data: bytes, turns: int) -> Row:
    """All figures of one upload."""
    decoder = UploadDecoder(max_pixels=MAX_PIXELS)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()

        async def decode() -> tuple[str, int]:
            async with decoder.decode(file, UploadKind.PICTURE, owner="bench") as decoded:
                return decoded.picture.format, os.fstat(decoded.file.fileno()).st_size

        stored_as, stored_bytes = await decode()  # starts the process
        alone, here, api = [], [], []
        child = children_cpu_seconds()  # the kernel tells it in hundredths: over all turns
        for _ in range(turns):
            alone.append(cpu_ms(lambda: pillow(data)))
            here.append(cpu_ms(lambda: normalise(data)))
            own = time.process_time()
            await decode()
            api.append(1e3 * (time.process_time() - own))
        there = 1e3 * (children_cpu_seconds() - child) / turns
    decoder.close()
    alone_ms, here_ms, api_ms = (statistics.median(figures) for figures in (alone, here, api))
    return Row(name, len(data), alone_ms, here_ms, there, api_ms, stored_as, stored_bytes)


def table(rows: list[Row], pixels: str) -> str:
    """The figures as Markdown."""
    lines = [
        f"Uploads of {pixels} pixels; CPU milliseconds.",
        "",
        (
            "| upload | kB | Pillow decodes | normalised here | by a decoder process "
            "| and in the API | all of it, in terms of Pillow's | stored as | kB |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.sent_bytes / 1e3:,.0f} | {row.pillow_ms:.1f} | {row.here_ms:.1f} "
        f"| {row.decoder_ms:.1f} | {row.api_ms:.1f} "
        f"| {(row.decoder_ms + row.api_ms) / row.pillow_ms:.2f} "
        f"| {row.stored_as} | {row.stored_bytes / 1e3:,.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    image = photograph(arguments.width, arguments.height)
    rows = [
        asyncio.run(measure(name, data, arguments.turns)) for name, data in uploads(image).items()
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = table(rows, f"{arguments.width} x {arguments.height}")
    (arguments.out / "uploads.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
