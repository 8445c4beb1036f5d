"""Every example of docs/api.md, word by word, in the language that it is written in."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stack import Service

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "api.md").read_text()
EXAMPLES = [
    (title, language, code)
    for title, text in re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", GUIDE)
    for language, code in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", text)
]
PROGRAMS = {
    "bash": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-W", "error", "-c"],
    "javascript": ["node", "--input-type=module", "-e"],
}
ID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
PRINTED = {
    "Make a picture and wait for it": "",
    "Submit now, ask later": "",
    "Follow a job's events": r".*progress.*done.*",
    "Repeat a request safely": "",
    "List, cancel and delete": "",
    "Be called back": "",
    "Errors": r".*422.*steps.*",
}
"""All that an example prints, by its section (a pattern)."""
PRINTED_BY_CURL = {
    "Repeat a request safely": rf"({ID})\n\1\n",
    "List, cancel and delete": r'.*"jobs":\[.*"status":"canceled".*',
}
"""The same where curl shows the answers that the other languages check."""


def node_reads_files_as_blobs() -> bool:
    """`openAsBlob` and `fetch` came with Node 20."""
    if shutil.which("node") is None:
        return False
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return int(version.stdout.removeprefix("v").split(".")[0]) >= 20


def test_every_section_is_known_here_and_has_an_example_in_each_language() -> None:
    found: dict[str, list[str]] = {}
    for title, language, _ in EXAMPLES:
        found.setdefault(title, []).append(language)
    assert found.keys() == PRINTED.keys()
    assert found.pop("Be called back") == ["python"]
    assert all(languages == list(PROGRAMS) for languages in found.values())


@pytest.mark.parametrize(
    ("title", "language", "code"), EXAMPLES, ids=[f"{title}-{name}" for title, name, _ in EXAMPLES]
)
def test_an_example_runs_as_written(
    guide_service: Service, tmp_path: Path, title: str, language: str, code: str
) -> None:
    if language == "javascript" and not node_reads_files_as_blobs():
        pytest.skip("there is no Node 20")
    if language == "bash" and shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [*PROGRAMS[language], code.replace("http://127.0.0.1:8000", guide_service.api.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    own = PRINTED_BY_CURL if language == "bash" else {}
    pattern = own.get(title, PRINTED[title])
    assert re.fullmatch(pattern, done.stdout, re.DOTALL), done.stdout
    pictures = {"Make a picture and wait for it": "star.png", "Submit now, ask later": "ring.png"}
    if title in pictures:
        assert (tmp_path / pictures[title]).read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def guide_service(make_service: Callable[..., Service]) -> Service:
    """The service that the guide's examples find on port 8000."""
    return make_service().start()
