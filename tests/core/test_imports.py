"""The structure that HOUSE.md asks for, measured from the code: layers, circles, sizes, names.

Layers are seen in fresh interpreters, where nothing may happen at import.
"""

import ast
import graphlib
import json
import os
import pkgutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
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
import importlib, json, socket, sys
socket.socket.connect = lambda *_: (_ for _ in ()).throw(SystemExit("connected at import"))
for modules in json.loads(sys.argv[1]):
    for name in modules:
        importlib.import_module(name)
    print(json.dumps(sorted(sys.modules)))
"""


def modules_of(package: str) -> list[str]:
    """Names of all modules under a package, but for what starts a program or is the CLI."""
    folder = ROOT / package.replace(".", "/")
    names = [package] + [
        module.name for module in pkgutil.walk_packages([str(folder)], f"{package}.")
    ]
    return [name for name in names if not name.startswith("service.cli")]


def loaded(*packages: str) -> list[set[str]]:
    """What a fresh interpreter has loaded after importing all of each package, one by one."""
    run = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps([modules_of(package) for package in packages])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    return [set(json.loads(line)) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("outer", ["service", "workers"])
def test_a_package_does_not_know_what_it_must_not(outer: str) -> None:
    inner = next(package for package in RULES if package.startswith(f"{outer}."))
    for package, names in zip((inner, outer), loaded(inner, outer), strict=True):
        assert not {name.split(".")[0] for name in names} & set(RULES[package]), package
        if outer == "workers":
            outside = {name for name in names if name.startswith("service.")}
            assert {name for name in outside if not name.startswith("service.core")} == set()


PACKAGES = ("service", "workers", "training", "bench")
MOST_LINES = 400


def sources(*packages: str) -> dict[str, ast.Module]:
    """Syntax trees by module name."""
    found = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text("utf-8"), filename=str(path))
    return found


def imports(name: str, tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Own modules that a module imports anywhere in it, functions and type checks included."""
    package = name if name in PACKAGES else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*above, node.module or ""]).strip(".") if node.level else node.module
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in known:
                    yield inner
                elif base in known:
                    yield str(base)


def test_no_modules_import_each_other_in_a_circle() -> None:
    trees = sources(*PACKAGES)
    graph = {name: set(imports(name, tree, set(trees))) - {name} for name, tree in trees.items()}
    assert sum(map(len, graph.values())) > len(graph), "the imports were found"
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            lines = len(path.read_text("utf-8").splitlines())
            if lines > MOST_LINES:
                long[str(path.relative_to(ROOT))] = lines
    assert long == {}


def test_no_two_classes_share_a_name() -> None:
    homes = defaultdict(list)
    for module, tree in sources("service", "workers").items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}
