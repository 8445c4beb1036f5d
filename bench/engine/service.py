"""What the service costs around the model: HTTP to job done, less the engine's own time."""

import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from rich.console import Console

from bench.engine.subject import Subject
from service.cli.up import running

JOBS = 12


def cost(subject: Subject, *, compiled: bool) -> float:
    """Median seconds from sending a request to its finished job, less encode, denoise, decode.

    The service runs as it does everywhere: Redis, API and worker processes on loopback.
    """
    os.environ["IMAGEPROMPT_MODELS"] = str(subject.models)
    os.environ["IMAGEPROMPT_COMPILE"] = str(compiled).lower()
    seconds = []
    with (
        tempfile.TemporaryDirectory(prefix="imageprompt-bench-") as data,
        running(Path(data), port=0, workers=1, console=Console(quiet=True)) as service,
        httpx.Client(base_url=service.url, timeout=300) as client,
    ):
        seconds += [_once(client, subject, seed) for seed in range(JOBS)]
    return statistics.median(seconds[2:])


def _once(client: httpx.Client, subject: Subject, seed: int) -> float:
    job = subject.job(seed, size=subject.single, steps=subject.short)
    upload = io.BytesIO()
    job.read(job.request.images[0].key).save(upload, "PNG")
    started = time.perf_counter()
    answer = client.post(
        "/generate",
        headers={"Prefer": "wait=60"},
        files={"image": ("image.png", upload.getvalue(), "image/png")},
        data={"steps": str(subject.short), "seed": str(seed)},
    )
    total = time.perf_counter() - started
    answer.raise_for_status()
    done = answer.json()
    if done["status"] != "succeeded":
        raise RuntimeError(f"a job of the bench ended as {done['status']}: {done['error']}")
    spent: float = sum(
        done["metrics"][f"{part}_seconds"] for part in ("encode", "denoise", "decode")
    )
    return total - spent
