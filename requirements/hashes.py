"""Writes requirements/hashed/: what each image installs, with the hashes of its wheels.

`make hashes`, after a pin has changed. The Dockerfiles install these files with `--require-hashes`.
Only the hashes of wheels that fit the image's Python on Linux are kept; uv reads them from the
index without downloading the packages. torch for CPUs is left out: its wheel comes from another
index or, where there is none, is the one for CUDA, so the Dockerfile installs it by version.
"""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

FOLDER: Final = Path(__file__).parent
GLIBC_MINOR: Final = 39
"""Of the newest base image; wheels for older ones fit as well."""
IMAGES: Final = {
    "api.txt": ("otel.txt", (3, 11), ()),
    "worker.txt": ("worker.txt", (3, 11), ("torch",)),
    "worker-cuda.txt": ("worker-cuda.txt", (3, 12), ()),
    "worker-cuda13.txt": ("worker-cuda13.txt", (3, 12), ()),
}
"""Output: pins, the image's Python, and what is left out. Traces are in every image."""
HEADER: Final = "# Made from requirements/{} by `make hashes`.\n"


def _tags(python: tuple[int, int]) -> frozenset[Tag]:
    """What pip accepts in the image, on x86_64 and on arm64."""
    platforms = [
        f"manylinux{form}_{machine}"
        for machine in ("x86_64", "aarch64")
        for form in (*(f"_2_{minor}" for minor in range(5, GLIBC_MINOR + 1)), "1", "2010", "2014")
    ]
    interpreter = f"cp{python[0]}{python[1]}"
    return frozenset(
        [
            *cpython_tags(python, platforms=platforms),
            *compatible_tags(python, interpreter=interpreter, platforms=[*platforms, "any"]),
        ]
    )


def _locked(pins: Path, python: tuple[int, int]) -> list[dict[str, Any]]:
    """Every package of the pins and of otel.txt, as uv finds it on the index."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps"]
    done = subprocess.run(  # noqa: S603  our own arguments
        [
            *command,
            "--format=pylock.toml",
            f"--python-version={python[0]}.{python[1]}",
            f"--python-platform=x86_64-manylinux_2_{GLIBC_MINOR}",
            str(pins),
            str(FOLDER / "otel.txt"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = tomllib.loads(done.stdout)["packages"]
    return found


def render(pins: str, python: tuple[int, int], left_out: tuple[str, ...]) -> str:
    """Return the file for one image. Raises `ValueError` where a package has no wheel for it."""
    fitting = _tags(python)
    lines = []
    for package in _locked(FOLDER / pins, python):
        if package["name"] in left_out:
            continue
        hashes = sorted(
            wheel["hashes"]["sha256"]
            for wheel in package.get("wheels", [])
            if parse_wheel_filename(wheel["url"].rsplit("/", 1)[1])[3] & fitting
        )
        if not hashes:
            raise ValueError(f"{package['name']} has no wheel for Python {python} on Linux")
        parts = [
            f"{package['name']}=={package['version']}",
            *(f"--hash=sha256:{h}" for h in hashes),
        ]
        lines.append(" \\\n    ".join(parts))
    return HEADER.format(pins) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (FOLDER / "hashed").mkdir(exist_ok=True)
    for name, image in IMAGES.items():
        (FOLDER / "hashed" / name).write_text(render(*image), encoding="utf-8")
