"""A cluster's workers start offline from a cache that `python -m workers.download` filled."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.buckets import REGION, Bucket
from tests.deploy.hub import Hub
from training import tiny

ROOT = Path(__file__).resolve().parents[2]

TWICE = "from workers import download; assert download.main([]) == download.main([]) == 0"
LOAD = """
import torch
from service.core.catalog import load_catalog
from service.core.settings import load_settings
from workers.engine import attention
from workers.engine.models import FAMILIES

catalog = load_catalog(load_settings().models)
for name, entry in catalog.models.items():
    FAMILIES[entry.family](
        name, entry, device=torch.device("cpu"), kernel=attention.sdpa, on_stage=print
    )
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with a file beside it that nobody needs."""
    folder = tiny.build(tmp_path_factory.mktemp("hub") / "tiny")
    (folder / "adapters" / "ip-adapter.bin").write_bytes(b"not wanted")
    (folder / "big-checkpoint.safetensors").write_bytes(b"not wanted")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models.yaml that names hub repositories only."""
    place = {"repo": "somebody/tiny", "revision": "main"}
    adapter = {**place, "subfolder": "adapters", "image_encoder": "image_encoder"}
    entry = {
        "title": "From the hub",
        "base": place,
        "vae": {**place, "subfolder": "vae"},
        "adapters": {
            "base": {**adapter, "weight_name": "ip-adapter.safetensors"},
        },
        "controlnets": {"outline": {**place, "subfolder": "controlnets/outline"}},
        "limits": {"min_size": 64, "max_size": 256, "max_pixels": 65536},
        "defaults": {"width": 64, "height": 64, "adapter": "base"},
    }
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump({"default": "tiny", "models": {"tiny": entry}}))
    return path


def run(*command: str, environment: dict[str, str], seconds: float = 600) -> str:
    """Run Python with an environment; the output of both streams.

    Whoever runs the tests may have settings of their own.
    """
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "IMAGEPROMPT_"))}
    done = subprocess.run(
        [sys.executable, *command],
        env={**mine, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_was_fetched_once_loads_without_a_network(
    repository: Path, models: Path, tmp_path: Path
) -> None:
    cache = {
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "120",  # after its 10 s a slow machine is asked again
        "HF_HUB_ETAG_TIMEOUT": "120",
        "IMAGEPROMPT_MODELS": str(models),
    }
    with Hub({"somebody/tiny": repository}) as hub:
        online = {**cache, "HF_ENDPOINT": hub.url}
        run("-c", TWICE, environment=online)
        weights = [name for name in hub.sent if name.endswith((".safetensors", ".bin"))]
    assert any(name.endswith("unet/diffusion_pytorch_model.safetensors") for name in weights)
    assert not any(name.endswith((".bin", "big-checkpoint.safetensors")) for name in weights)
    assert len(weights) == len(set(weights)), "weights were sent twice"
    offline = {**cache, "HF_HUB_OFFLINE": "1", "IMAGEPROMPT_DEVICE": "cpu"}
    run("-m", "workers.download", "--wait", environment=offline)
    run("-c", LOAD, environment=offline)


def test_a_bucket_replaces_the_model_hub(
    repository: Path, models: Path, tmp_path: Path, make_bucket: Callable[[], Bucket]
) -> None:
    """Filled once from a cache, it gives another machine the same files; no hub is asked."""
    bucket = make_bucket()
    url = f"s3://{bucket.name}/models"
    ours = {
        **{f"IMAGEPROMPT_{name.upper()}": str(value) for name, value in bucket.settings.items()},
        "AWS_REGION": REGION,
        "IMAGEPROMPT_MODELS": str(models),
    }
    first = {**ours, "HF_HOME": str(tmp_path / "first"), "HF_HUB_DOWNLOAD_TIMEOUT": "120"}
    with Hub({"somebody/tiny": repository}) as hub:
        run("-m", "workers.download", environment={**first, "HF_ENDPOINT": hub.url})
    run("-m", "workers.download", "--upload", url, environment=first)
    assert not any("blobs" in name for name in bucket.names())
    second = {
        **ours,
        "HF_HOME": str(tmp_path / "second"),
        "HF_HUB_OFFLINE": "1",
        "IMAGEPROMPT_DEVICE": "cpu",
        "IMAGEPROMPT_MODEL_FILES_URL": url,
    }
    run("-m", "workers.download", environment=second)
    assert "everything is there" in run("-m", "workers.download", environment=second)
    run("-c", LOAD, environment=second)


def test_two_downloads_into_one_cache_do_it_once(
    repository: Path, models: Path, tmp_path: Path
) -> None:
    """The second one waits for the lock and finds everything there; no file is sent twice."""
    with Hub({"somebody/tiny": repository}) as hub:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "IMAGEPROMPT_"))},
            "HF_HOME": str(tmp_path / "cache"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DOWNLOAD_TIMEOUT": "120",
            "HF_HUB_ETAG_TIMEOUT": "120",
            "IMAGEPROMPT_MODELS": str(models),
        }
        command = [sys.executable, "-m", "workers.download"]
        both = [subprocess.Popen(command, env=environment, cwd=ROOT) for _ in range(2)]
        assert [process.wait(timeout=600) for process in both] == [0, 0]
        assert len(hub.sent) == len(set(hub.sent))


def test_an_empty_bucket_is_said(
    models: Path, tmp_path: Path, make_bucket: Callable[[], Bucket]
) -> None:
    bucket = make_bucket()
    ours = {f"IMAGEPROMPT_{name.upper()}": str(v) for name, v in bucket.settings.items()}
    done = subprocess.run(
        [sys.executable, "-m", "workers.download"],
        env={
            **os.environ,
            **ours,
            "AWS_REGION": REGION,
            "HF_HOME": str(tmp_path / "cache"),
            "IMAGEPROMPT_MODELS": str(models),
            "IMAGEPROMPT_MODEL_FILES_URL": f"s3://{bucket.name}/models",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2
    assert "nothing lies under" in done.stderr
