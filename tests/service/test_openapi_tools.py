"""The OpenAPI document is read without a complaint by the tools that people give it to.

They are installed here, into out/, and by nothing else: npm packages where Node is, one of Python
in an environment of its own. Without them, or without a package index, these tests are skipped.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from service.core.settings import ROOT

DOCUMENT = ROOT / "openapi" / "openapi.yaml"
TOOLS = ROOT / "out" / "openapi-tools"
NPM = ("@redocly/cli@2.77.0", "@hey-api/openapi-ts@0.95.0", "typescript@5.9.3")
PYTHON = ("openapi-python-client==0.29.1", "openapi-generator-cli==7.26.0")
INSTALL_SECONDS = 120


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A tool's exit status and all that it printed."""
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=folder,
    )


def install(command: Sequence[str | Path]) -> None:
    """Install tools, or skip the test."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            check=False,
            capture_output=True,
            timeout=INSTALL_SECONDS,
            cwd=TOOLS,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the tools could not be installed in time")
    if done.returncode:
        pytest.skip("the tools could not be installed: no package index, or a broken one")


@pytest.fixture(scope="module")
def node() -> Path:
    """The folder of the Node tools' commands."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node")
    quick = ("--fetch-retries=0", "--fetch-timeout=20000")
    install(["npm", "install", "--prefix", TOOLS, "--no-fund", "--no-audit", *quick, *NPM])
    return TOOLS / "node_modules" / ".bin"


def test_redocly_finds_nothing(node: Path) -> None:
    config = DOCUMENT.with_name("redocly.yaml")
    linted = run(
        node / "redocly", "lint", DOCUMENT, "--config", config, "--format=json", folder=TOOLS
    )
    assert linted.returncode == 0, linted.stdout
    assert '"errors": 0' in linted.stdout
    assert '"warnings": 0' in linted.stdout


def test_openapi_ts_makes_a_client_that_typescript_compiles(node: Path, tmp_path: Path) -> None:
    made = run(node / "openapi-ts", "-i", DOCUMENT, "-o", tmp_path / "client", folder=tmp_path)
    assert made.returncode == 0, made.stdout
    assert "warn" not in made.stdout.lower()
    compiled = run(
        node / "tsc",
        *("--noEmit", "--strict", "--skipLibCheck", "--module", "esnext"),
        *(
            "--moduleResolution",
            "bundler",
            "--target",
            "es2022",
            "--lib",
            "es2023,dom,dom.iterable",
        ),
        tmp_path / "client" / "index.ts",
        folder=tmp_path,
    )
    assert compiled.returncode == 0, compiled.stdout


@pytest.fixture(scope="module")
def python() -> Path:
    """The folder of the Python tools' commands."""
    environment = TOOLS / "python"
    if not (environment / "bin" / "python").exists():
        install([sys.executable, "-m", "venv", environment])
    pip = (environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    install([*pip, "install", "--quiet", *PYTHON])
    return environment / "bin"


def test_openapi_python_client_leaves_nothing_out(python: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(DOCUMENT.with_name("python-client.yaml").read_text() + "post_hooks: []\n")
    made = run(
        python / "openapi-python-client",
        *("generate", "--path", DOCUMENT, "--output-path", tmp_path / "client"),
        *("--config", config, "--fail-on-warning"),
        folder=tmp_path,
    )
    assert made.returncode == 0, made.stdout
    names = {path.name for path in (tmp_path / "client").rglob("*.py")}
    assert "generate.py" in names


@pytest.mark.parametrize(
    ("generator", "written"), [("python", "def {}("), ("typescript-fetch", "async {}(")]
)
def test_openapi_generator_writes_every_operation(
    python: Path, tmp_path: Path, generator: str, written: str
) -> None:
    if shutil.which("java") is None:
        pytest.skip("openapi-generator needs Java")
    made = run(
        python / "openapi-generator-cli",
        *("generate", "-i", DOCUMENT, "-g", generator, "-o", tmp_path),
        folder=tmp_path,
    )
    assert made.returncode == 0, made.stdout
    assert "COLLISION" not in made.stdout
    code = "".join(
        path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".py", ".ts")
    )
    paths = yaml.safe_load(DOCUMENT.read_text())["paths"].values()
    names = [one["operationId"] for operations in paths for one in operations.values()]
    if generator != "python":
        names = [re.sub("_(.)", lambda match: match[1].upper(), name) for name in names]
    assert [name for name in names if written.format(name) not in code] == []
