"""Maps of depth, made by a transformers model that models.yaml names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    PreTrainedModel,
    pipeline,
)
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from service.core.catalog import Catalog, Source
from service.core.errors import ConfigurationError
from service.core.settings import Device
from tests.engine.conftest import Stepper, job, read, request
from workers.engine.api import EngineJob, Options
from workers.engine.engine import load_engine
from workers.engine.models import depth


def depth_anything() -> PreTrainedModel:
    """A tiny one of random weights."""
    sides = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56}
    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = Dinov2Config(
        patch_size=14, out_features=stages, reshape_hidden_states=False, **sides
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        patch_size=14,
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    return DepthAnythingForDepthEstimation(config)


def dpt() -> PreTrainedModel:
    """The same of the older family."""
    config = DPTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    return DPTForDepthEstimation(config)


def save(model: PreTrainedModel, folder: Path) -> Source:
    """A folder as a repository has it."""
    model.save_pretrained(folder)
    size = {"height": 56, "width": 56}
    DPTImageProcessorPil(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(
        folder
    )
    return Source(path=folder)


@pytest.mark.parametrize("kind", [depth_anything, dpt])
def test_a_map_of_depth_is_that_of_transformers_and_comes_back(
    kind, catalog: Catalog, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = save(kind(), tmp_path / "depth")
    entry = catalog.models["tiny"].model_copy(update={"depth_estimator": source})
    served = Catalog(default="tiny", models={"tiny": entry})
    assert [str(one) for one in entry.preprocessors] == ["none", "canny", "depth"]
    engine = load_engine(served, Options(threads=1), device=Device.CPU)
    stepper = Stepper(engine)
    made = stepper.run(job(request(control={"preprocess": "depth"}), "made"))
    (drawn,) = made.maps
    picture = read("inputs/job/map.png").convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    theirs = pipeline("depth-estimation", model=str(tmp_path / "depth"), device="cpu")(picture)
    wanted = np.asarray(theirs["depth"])
    assert np.ptp(wanted) == 255
    assert np.array_equal(np.asarray(drawn), np.stack([wanted] * 3, axis=-1))

    def read_map(key: str) -> Image.Image:
        return drawn if "map" in key else read(key)

    stepper.run(EngineJob("sent", request(control={}), read_map))
    assert np.array_equal(stepper.decoded("made"), stepper.decoded("sent"))
    engine.stop()


def test_a_folder_without_a_depth_model_is_named(catalog: Catalog, tmp_path: Path) -> None:
    source = save(dpt(), tmp_path / "depth")
    (tmp_path / "depth" / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"depth/preprocessor_config\.json does not exist"):
        depth.load(source)
    config = tmp_path / "depth" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["GPT2"]}))
    with pytest.raises(ConfigurationError, match="is a GPT2, which estimates no depth"):
        depth.load(source)
    encoder = catalog.models["tiny"].adapters["base"]
    with pytest.raises(ConfigurationError, match="estimates no depth"):
        depth.load(Source(path=encoder.path, subfolder="adapters/image_encoder"))
    with pytest.raises(ConfigurationError, match="no such folder"):
        depth.load(Source(path=tmp_path / "nothing"))
