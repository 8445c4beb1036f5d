"""The bundled model in four steps without guidance, as models/shapes-fast.yaml serves it."""

import numpy as np
import torch
from PIL import Image

from service.core.catalog import load_catalog
from service.core.param_types import StoredUpload
from service.core.settings import ROOT, Device
from tests.engine.conftest import Stepper
from tests.requests import generate_request
from training import independent, judge
from workers.engine.api import EngineJob, Options
from workers.engine.engine import load_engine

NUMBER = 12


def test_most_image_prompts_come_out_right_in_four_steps() -> None:
    """Prompts of the evaluation's renderer: shape, colour, fill and background, all at once."""
    chosen = independent.pictures(NUMBER, seed=5)
    prompts = independent.draw(chosen)
    engine = load_engine(
        load_catalog(ROOT / "models" / "shapes-fast.yaml"), Options(threads=1), device=Device.CPU
    )

    def read(key: str) -> Image.Image:
        return Image.fromarray(prompts[int(key.split("/")[1])].permute(1, 2, 0).numpy())

    jobs = []
    for number in range(NUMBER):
        upload = StoredUpload(
            key=f"uploads/{number}/image.png",
            sha256=f"{number:064x}",
            pixels_sha256=f"{number:064x}",
            width=128,
            height=128,
        )
        asked = generate_request(
            model="shapes-fast",
            image=(upload,),
            width=128,
            height=128,
            guidance_scale=1,
            scheduler="dpmpp_2m",
            steps=4,
            seed=number,
        )
        jobs.append(EngineJob(str(number), asked, read))
    results = Stepper(engine).together(*jobs)
    painted = np.stack([np.asarray(result.images[0]) for result in results])
    found = judge.judge(torch.from_numpy(painted).permute(0, 3, 1, 2))
    read_off = torch.stack([found.shape, found.colour, found.fill, found.background], dim=1)
    right = (read_off == independent.attributes(chosen)).all(dim=1)
    assert int(right.sum()) >= NUMBER // 2
    engine.stop()
