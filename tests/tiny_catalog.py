"""Writes the tiny random-weights model and a models.yaml that serves it as `tiny`."""

from pathlib import Path

import yaml


def write_catalog(folder: Path) -> Path:
    """Build the model in `folder` and return the path of its models.yaml."""
    from training import tiny  # noqa: PLC0415  torch is imported only where a test needs it

    folder.mkdir(parents=True, exist_ok=True)
    tiny.build(folder / "tiny")
    adapter = {"path": "tiny", "subfolder": "adapters", "image_encoder": "image_encoder"}
    entry = {
        "title": "Random weights",
        "base": {"path": "tiny"},
        "adapters": {
            "base": {**adapter, "weight_name": "ip-adapter.safetensors"},
            "plus": {**adapter, "weight_name": "ip-adapter-plus.safetensors"},
        },
        "controlnets": {"outline": {"path": "tiny/controlnets/outline"}},
        "limits": {"min_size": 64, "max_size": 256, "max_pixels": 65536, "max_steps": 100},
        "defaults": {"width": 64, "height": 64, "adapter": "base", "steps": 4},
        "warm_sizes": [[64, 64]],
    }
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"default": "tiny", "models": {"tiny": entry}}))
    return path
