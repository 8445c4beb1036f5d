"""requirements/ pins what pyproject.toml asks for: all of it, and nothing besides."""

import re
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.deploy import pins

LAYERS = {
    "api.txt": ["api"],
    "worker.txt": ["worker"],
    "otel.txt": ["api", "otel"],
    "dev.txt": ["dev"],
}
"""The extras that each file is for."""
GPU_ONLY = re.compile("nvidia-|cuda-|triton$|xformers$")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the pins are made with Python 3.11")
@pytest.mark.parametrize("name", LAYERS)
def test_a_file_pins_all_that_its_extra_needs_and_nothing_else(name: str) -> None:
    """A torch that was not built for CPUs asks for CUDA's libraries as well; they stay unpinned."""
    needed = {package for package in pins.needed(LAYERS[name]) if not GPU_ONLY.match(package)}
    assert pins.read(name).keys() == needed


@pytest.mark.parametrize(
    ("name", "extras"),
    [*LAYERS.items(), ("worker-cuda.txt", ["cuda"]), ("worker-cuda13.txt", ["worker"])],
    ids=str,
)
def test_a_pin_is_a_version_that_pyproject_allows(name: str, extras: list[str]) -> None:
    pinned = pins.read(name)
    for requirement in pins.asked(extras):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version}"


@pytest.mark.parametrize("path", sorted(pins.FOLDER.glob("*.txt")), ids=lambda path: path.name)
def test_a_line_is_a_pin_an_include_or_a_comment(path: Path) -> None:
    """Nothing says where packages are downloaded from."""
    for line in path.read_text().splitlines():
        assert re.fullmatch(r"[\w.-]+==[\w.]+|-r \w+\.txt|#[^/]*", line), line


@pytest.mark.parametrize(("stack", "differs"), [("cuda", {"torch"}), ("cuda13", set())])
def test_all_workers_run_the_same_libraries_but_torch(stack: str, differs: set[str]) -> None:
    """What is tested on CPUs is what runs on GPUs."""
    cpu, cuda = pins.read("worker.txt"), pins.read(f"worker-{stack}.txt")
    assert {name for name in cpu if cuda.get(name) != cpu[name]} == differs
    extra = {name for name in cuda if name not in cpu}
    assert all(GPU_ONLY.match(name) for name in extra), extra


@pytest.mark.parametrize("name", ["api.txt", "worker.txt", "worker-cuda.txt", "worker-cuda13.txt"])
def test_images_install_the_pins_by_hash(name: str) -> None:
    """`make hashes` writes these files; a pin that has changed since then is noticed here."""
    wanted = pins.read("otel.txt") if name == "api.txt" else pins.read(name) | pins.read("otel.txt")
    if name == "worker.txt":
        del wanted["torch"]  # installed by its version (docker/worker.Dockerfile)
    text = (pins.FOLDER / "hashed" / name).read_text().replace(" \\\n", "")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            pin, *hashes = line.split()
            package, version = pin.split("==")
            found[canonicalize_name(package)] = version
            assert hashes, f"{package} has no hash"
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes)
    assert found == wanted, "run `make hashes`"
