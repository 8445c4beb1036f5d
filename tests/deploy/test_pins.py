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
    ("name", "extras"), [*LAYERS.items(), ("worker-cuda.txt", ["cuda"])], ids=str
)
def test_a_pin_is_a_version_that_pyproject_allows(name: str, extras: list[str]) -> None:
    pinned = pins.read(name)
    for requirement in pins.asked(extras):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version}"


@pytest.mark.parametrize("path", sorted(pins.FOLDER.iterdir()), ids=lambda path: path.name)
def test_a_line_is_a_pin_an_include_or_a_comment(path: Path) -> None:
    """Nothing says where packages are downloaded from."""
    for line in path.read_text().splitlines():
        assert re.fullmatch(r"[\w.-]+==[\w.]+|-r \w+\.txt|#[^/]*", line), line


def test_both_workers_run_the_same_libraries_but_torch() -> None:
    """What is tested on CPUs is what runs on GPUs."""
    cpu, cuda = pins.read("worker.txt"), pins.read("worker-cuda.txt")
    assert {name for name in cpu if cuda.get(name) != cpu[name]} == {"torch"}
    extra = {name for name in cuda if name not in cpu}
    assert all(GPU_ONLY.match(name) for name in extra), extra
