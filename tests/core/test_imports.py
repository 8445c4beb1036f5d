"""Who may know whom (DESIGN.md), seen in fresh interpreters; and nothing happens at import."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RULES = {
    "service.core": ("fastapi", "starlette", "torch", "workers", "uvicorn"),
    "service": ("torch", "workers", "diffusers", "transformers", "numpy"),
    "workers": ("fastapi", "starlette", "uvicorn"),
    "workers.engine": ("redis", "rq", "obstore", "httpx", "fastapi", "starlette"),
}

LOOK = """
import importlib, socket, sys
socket.socket.connect = lambda *_: (_ for _ in ()).throw(SystemExit("connected at import"))
for name in sys.argv[2].split(","):
    importlib.import_module(name)
found = {name.split(".")[0] for name in sys.modules} & set(sys.argv[1].split(","))
ours = {name for name in sys.modules if name.split(".")[0] in ("service", "workers")}
print(",".join(sorted(found)) + "|" + ",".join(sorted(ours)))
"""


def modules_of(package: str) -> list[str]:
    """Names of all modules under a package, but for what starts a program or is the CLI."""
    folder = ROOT / package.replace(".", "/")
    names = [package] + [
        module.name for module in pkgutil.walk_packages([str(folder)], f"{package}.")
    ]
    return [name for name in names if not name.startswith("service.cli")]


def imported(package: str) -> tuple[set[str], set[str]]:
    """Forbidden packages and own modules that a fresh interpreter has after importing all."""
    command = [sys.executable, "-c", LOOK, ",".join(RULES[package]), ",".join(modules_of(package))]
    answer = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 0, answer.stderr
    found, ours = answer.stdout.strip().split("|")
    return set(filter(None, found.split(","))), set(ours.split(","))


@pytest.mark.parametrize("package", RULES)
def test_a_package_does_not_know_what_it_must_not(package: str) -> None:
    found, ours = imported(package)
    assert not found
    if package.startswith("workers"):
        outside = {name for name in ours if name.startswith("service.")}
        assert {name for name in outside if not name.startswith("service.core")} == set()
