"""The same for Stable Diffusion 1.5, whose public repository has a safety checker besides."""

import json
from pathlib import Path

import yaml

from tests.deploy.hub import Hub
from tests.deploy.test_download import LOAD, run
from tests.engine import tiny_sd15


def test_a_base_is_fetched_without_its_safety_checker(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    tiny_sd15.write(folder)
    index = folder / "sd15" / "model_index.json"
    parts = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | parts))
    (folder / "sd15" / "safety_checker").mkdir()
    (folder / "sd15" / "safety_checker" / "model.safetensors").write_bytes(b"not wanted")
    place = {"repo": "somebody/adapters", "revision": "main", "subfolder": "models"}
    adapter = {**place, "image_encoder": "image_encoder"}
    entry = {
        "title": "From the hub",
        "family": "sd15",
        "base": {"repo": "somebody/sd15", "revision": "main"},
        "adapters": {"base": {**adapter, "weight_name": "sd15-ip-adapter_sd15.safetensors"}},
        "limits": {"min_size": 64, "max_size": 128, "max_pixels": 16384},
        "defaults": {"width": 64, "height": 64, "adapter": "base"},
    }
    models = tmp_path / "models.yaml"
    models.write_text(yaml.safe_dump({"default": "sd15", "models": {"sd15": entry}}))
    cache = {
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "120",  # after its 10 s a slow machine is asked again
        "HF_HUB_ETAG_TIMEOUT": "120",
        "IMAGEPROMPT_MODELS": str(models),
    }
    with Hub({"somebody/sd15": folder / "sd15", "somebody/adapters": folder}) as hub:
        run("-m", "workers.download", environment={**cache, "HF_ENDPOINT": hub.url})
        assert not any("safety_checker/" in name for name in hub.sent)
    run("-c", LOAD, environment={**cache, "HF_HUB_OFFLINE": "1", "IMAGEPROMPT_DEVICE": "cpu"})
