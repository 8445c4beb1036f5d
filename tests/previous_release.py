"""The code of the previous release, out of this repository's history, to run beside this one."""

import io
import subprocess
import tarfile
from pathlib import Path

from service.core.settings import ROOT

COMMIT = "3e985d6"
# `-P` keeps the present folder, and so this release, out of the path; PYTHONPATH names the other.
API = ("-P", "-m", "service")
WORKER = ("-P", "-m", "workers")


class Unavailable(Exception):
    """Raised when the history does not hold the previous release."""


def extract(folder: Path) -> None:
    """Write its packages into a folder. Raises `Unavailable`."""
    command = ["git", "archive", "--format=tar", COMMIT, "service", "workers"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if run.returncode != 0:
        raise Unavailable(f"the history does not hold {COMMIT}: {run.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(run.stdout)) as archive:
        archive.extractall(folder, filter="data")
