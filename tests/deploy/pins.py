"""Reads requirements/ and what pyproject.toml asks for; judges nothing."""

import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.manifests import ROOT

FOLDER = ROOT / "requirements"


def read(name: str) -> dict[str, str]:
    """Versions by package of one file and those that it includes."""
    pinned: dict[str, str] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if line.startswith("-r "):
            pinned |= read(line.removeprefix("-r "))
        elif "==" in line:
            package, version = line.split("==")
            pinned[canonicalize_name(package)] = version
    return pinned


def asked(extras: Iterable[str]) -> Iterator[Requirement]:
    """What pyproject.toml asks for by itself and with `extras`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    for requirement in map(Requirement, lines):
        if requirement.name == project["name"]:
            yield from asked(requirement.extras)
        else:
            yield requirement


def needed(extras: Iterable[str]) -> set[str]:
    """Names of all packages that come with them here, as those that are installed say."""
    waiting = list(asked(extras))
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        wanted = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if wanted in seen:
            continue
        seen.add(wanted)
        for line in metadata.requires(requirement.name) or []:
            more = Requirement(line)
            if more.marker is None or any(
                more.marker.evaluate({"extra": extra}) for extra in requirement.extras or {""}
            ):
                waiting.append(more)
    return {name for name, _ in seen}
