"""Images built and run without a Docker daemon: buildah and podman of Debian, on a base of Debian.

The base stands in for python:3.11-slim, which no registry here gives out: debootstrap makes it of
Debian's own packages.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT

BASE = "localhost/imageprompt-base:1"
TOOLS = ("buildah", "podman", "runc", "debootstrap")
PACKAGES = (
    "python3,python3-venv,python3-pip,python-is-python3,ca-certificates,python3-async-timeout"
)
BACKPORTS = "opt/backports"
"""Debian 12 has Python 3.11.2, for which redis needs a module; the real base has a newer one."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
WHEELS = Path("/opt/wheels")
"""Of this machine, where they exist: whom pip trusts, and wheels that lie here (torch for CPUs)."""


def require_tools() -> None:
    """Skip where images cannot be built."""
    if os.geteuid() != 0:
        pytest.skip("building images without a daemon needs root here")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian packages of these names)")


@dataclass(frozen=True)
class Engine:
    """Builds and runs containers; everything that it stores lies in one folder."""

    folder: Path

    def options(self) -> list[str]:
        """Where it stores things."""
        return [
            *("--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")),
            *("--storage-driver", "overlay"),
        ]

    def call(self, tool: str, *arguments: str, seconds: float = 1800) -> str:
        """What a tool prints; fails with what it wrote to the end."""
        done = subprocess.run(
            [tool, *self.options(), *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    def make_base(self) -> None:
        """A Debian with Python, as an image."""
        rootfs = self.folder / "rootfs"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(rootfs)],
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
        if made.returncode != 0:
            pytest.skip(f"debootstrap reached no Debian mirror: {made.stdout[-500:]}")
        (rootfs / BACKPORTS).mkdir()
        (rootfs / "usr/lib/python3/dist-packages/async_timeout").rename(
            rootfs / BACKPORTS / "async_timeout"
        )
        archive = self.folder / "rootfs.tar"
        subprocess.run(["tar", "-C", rootfs, "-cf", archive, "."], check=True)
        shutil.rmtree(rootfs)
        self.call("podman", "import", f"--change=ENV PYTHONPATH=/{BACKPORTS}", str(archive), BASE)
        archive.unlink()

    def build(self, dockerfile: str, tag: str, *options: str) -> None:
        """`buildah build` with the repository as its context."""
        pip = self.folder / "pip.conf"
        pip.write_text(f"[global]\ncert = {CERTIFICATES}\nfind-links = {WHEELS}\ntimeout = 180\n")
        mounts = [f"--volume={path}:{path}:ro" for path in (CERTIFICATES, WHEELS) if path.exists()]
        self.call(
            "buildah",
            *("build", "--layers=false", "--isolation=chroot", "--network=host", "--format=docker"),
            *mounts,
            f"--volume={pip}:/etc/pip.conf:ro",
            f"--build-arg=BASE={BASE}",
            *options,
            *("--file", dockerfile, "--tag", tag, "."),
        )

    def bytes_of(self, image: str) -> int:
        """Size of an image without its base."""
        sizes = [
            int(self.call("podman", "image", "inspect", "--format={{.Size}}", name))
            for name in (image, BASE)
        ]
        return sizes[0] - sizes[1]

    def start(
        self, image: str, memory: str, environment: dict[str, str], secrets: Path
    ) -> "Container":
        """Run an image as its Deployment does: read-only, without rights, with a memory limit."""
        identity = self.call(
            "podman",
            *("--runtime=runc", "run", "--detach", "--network=host", "--no-healthcheck"),
            *("--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges"),
            *("--ulimit=nofile=4096:4096", "--ulimit=nproc=512:512", f"--memory={memory}"),
            f"--volume={secrets}:/run/secrets/imageprompt:ro",
            *(f"--env={name}={value}" for name, value in environment.items()),
            image,
        ).strip()
        return Container(self, identity)

    def remove(self) -> None:
        """Delete every container and image."""
        self.call("podman", "rm", "--all", "--force")
        self.call("podman", "rmi", "--all", "--force")


@dataclass(frozen=True)
class Container:
    """A started container."""

    engine: Engine
    identity: str

    def state(self, field: str) -> str:
        """A field of the container's state."""
        return self.engine.call(
            "podman", "inspect", f"--format={{{{.State.{field}}}}}", self.identity
        ).strip()

    def status(self) -> Iterator[tuple[str, str]]:
        """Fields of the main process as Linux has them."""
        for line in Path(f"/proc/{self.state('Pid')}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            yield name, value.strip()

    def logs(self) -> str:
        """What it has written."""
        done = subprocess.run(
            ["podman", *self.engine.options(), "logs", self.identity],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return (done.stdout + done.stderr)[-4000:]

    def stop(self, seconds: int) -> int:
        """SIGTERM, and SIGKILL after so many seconds; the exit status."""
        self.engine.call("podman", "--runtime=runc", "stop", f"--time={seconds}", self.identity)
        return int(self.state("ExitCode"))
