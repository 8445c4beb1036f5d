"""What the worker image's Dockerfile installs, installed and resolved for real: `make test-images`.

No part of `make test`: it takes minutes, and gigabytes where pip finds no wheel of torch for CPUs.
PIP_EXTRA_INDEX_URL names PyTorch's index of them, as it does when the image is built. Prints what
it saw.
"""

import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.deploy import pins
from tests.deploy.manifests import ROOT
from tests.deploy.test_dockerfiles import stages

STEPS = stages(ROOT / "docker" / "worker.Dockerfile")
NO_REGISTRY = re.compile(
    "from versions: none|Max retries|timed out|HTTP error 5|Connection (broken|aborted|reset)"
    "|IncompleteRead|RemoteDisconnected|Failed to fetch|error sending request"
)
"""What pip and uv say of it; a version that does not exist reads otherwise."""
WARM = """
from workers import __main__, download
from workers.engine.engine import load_engine
from workers.engine.api import Options
from service.core.catalog import load_catalog
from service.core.settings import ROOT, Device
engine = load_engine(
    load_catalog(ROOT / "models" / "shapes.yaml"), Options(threads=1), device=Device.CPU
)
print(engine.models.keys())
"""


def install(stage: str) -> list[str]:
    """The arguments of a stage's `pip install`, its requirement files where they lie here."""
    (step,) = (r for i, r in STEPS[stage] if i == "RUN" and r[0] == "[" and '"install"' in r)
    return [
        part.replace("/build/requirements", f"{ROOT}/requirements")
        for part in json.loads(step)[json.loads(step).index("install") + 1 :]
    ]


def ran(command: Iterable[str | Path], *, folder: Path) -> str:
    """What a command prints. Skips where no registry answers."""
    done = subprocess.run(
        [*command], cwd=folder, capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode != 0 and NO_REGISTRY.search(done.stderr):
        pytest.skip(f"no package registry can be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cpu_worker_installs_and_loads_the_bundled_model(tmp_path: Path) -> None:
    """The stage `cpu-build` in a clean virtual environment, which then loads the model."""
    target = tmp_path / "venv"
    venv.create(target, with_pip=False)
    python = target / "bin" / "python"
    ran(
        [sys.executable, "-m", "pip", "--python", python, "install", *install("cpu-build")],
        folder=tmp_path,
    )
    size = sum(p.lstat().st_size for p in target.rglob("*") if p.is_file())
    print(f"\nPython packages of the CPU worker's image: {size / 1e6:.0f} MB")  # noqa: T201  a figure
    assert "shapes" in ran([python, "-c", WARM], folder=ROOT)


def test_the_cuda_worker_gets_exactly_its_pins(tmp_path: Path) -> None:
    """What resolves for the Python and the glibc of the image's base. Only metadata is fetched."""
    steps = " ".join(rest for _, rest in STEPS["cuda-build"])
    python = re.search(r"python3=(\d\.\d+)\.", steps)
    assert python
    assert any(i == "FROM" and "ubuntu24.04" in rest for i, rest in STEPS["cuda-base"]), (
        "glibc 2.39"
    )
    place = ["--python-version", python[1], "--python-platform", "x86_64-manylinux_2_39"]
    files = [part for part in install("cuda-build") if part != "--requirement"]
    found = ran(
        [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--no-python-downloads",
            "--no-header",
            "--no-annotate",
            *place,
            *files,
        ],
        folder=tmp_path,
    )
    resolved = dict(line.split("==") for line in found.splitlines())
    assert resolved == pins.read("worker-cuda.txt") | pins.read("otel.txt")
