"""`python -m bench.scale.measure`: what one job costs here, in the terms of the simulation.

Runs the engine alone (no Redis, no HTTP) on the catalog's default model and writes
out/bench/device.json, which `python -m bench.scale` reads.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Final

from PIL import Image

from bench.scale.simulation import Device
from service.core.catalog import Catalog, load_catalog
from service.core.param_types import StoredUpload
from service.core.params import GenerateRequest
from service.core.settings import load_settings
from workers.engine.api import EngineJob, Options
from workers.engine.engine import Engine, load_engine

OUT: Final = Path("out/bench/device.json")
TOGETHER: Final = 8


def job(catalog: Catalog, number: int) -> EngineJob:
    """Make a job with the model's defaults and an image prompt that no cache knows."""
    entry = catalog.models[catalog.default]
    digest = f"{number:064x}"
    prompt = StoredUpload(
        key="uploads/bench/image-0.png", sha256=digest, pixels_sha256=digest, width=256, height=256
    )
    request = GenerateRequest(
        model=catalog.default,
        adapter=entry.defaults.adapter,
        image=(prompt,),
        image_weights=(1.0,),
        ip_scale=1,
        width=entry.defaults.width,
        height=entry.defaults.height,
        steps=entry.defaults.steps,
        guidance_scale=entry.defaults.guidance_scale,
        scheduler=entry.defaults.scheduler,
        seed=number,
    )
    colour = (number * 37 % 256, 120, 200)
    return EngineJob(str(number), request, lambda _key: Image.new("RGB", (256, 256), colour))


def measure(engine: Engine, catalog: Catalog, *, slots: int) -> Device:
    """Run one job alone, three times, and then several at once."""
    alone = [engine.submit(job(catalog, number)).result() for number in range(3)]
    best = min(alone, key=lambda result: result.denoise_seconds)
    began = time.monotonic()
    tickets = [engine.submit(job(catalog, 100 + number)) for number in range(TOGETHER)]
    batch = max(ticket.result().max_batch for ticket in tickets)
    lasted = time.monotonic() - began
    around = best.encode_seconds + best.decode_seconds
    share = (TOGETHER - (lasted - around) / best.denoise_seconds) / (TOGETHER - 1)
    return Device(
        job_seconds=best.denoise_seconds,
        fixed=min(max(share, 0.0), 0.95),
        around_seconds=around,
        batch=max(batch // 2, 1),
        slots=slots,
    )


def main() -> None:
    """Measure and write."""
    settings = load_settings()
    catalog = load_catalog(settings.models)
    engine = load_engine(
        catalog,
        Options(slots=settings.worker_slots, threads=settings.worker_threads, on_stage=print),
        device=settings.device,
        attention=settings.attention,
        compile=settings.compile,
    )
    engine.warm_up()
    device = measure(engine, catalog, slots=settings.worker_slots)
    engine.stop()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(dataclasses.asdict(device), indent=1), encoding="utf-8")
    print(device)


if __name__ == "__main__":
    main()
