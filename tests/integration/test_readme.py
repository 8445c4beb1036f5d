"""The curl commands of README.md, word by word, and the answers that it promises.

The service they ask is a real one with the bundled model. Only the port is another.
"""

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.core.picture_metadata import read_recipe
from tests.stack import Service

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", README)
COMMANDS = [
    command
    for language, block in BLOCKS
    if not language
    for command in re.findall(r"(?m)^curl (?:.*\\\n)*.*", block)
]
"""Each with the line breaks that it has there."""
MADE = re.compile(r" -o (\S+)")
TEXT, MAP = re.compile(r"-F 'prompt=([^']*)'"), "-F control_image="

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


@pytest.fixture(scope="module")
def bundled(make_service: Callable[..., Service]) -> Service:
    """The service that `make serve` starts, as README's commands find it."""
    service = make_service(models=ROOT / "models" / "shapes.yaml")
    service.start_api()
    service.add_worker(wait=False).wait("/healthz/ready", seconds=900)  # as long as `up` would
    service.wait_ready()
    return service


@pytest.fixture
def curl(bundled: Service, tmp_path: Path) -> Callable[[str], str]:
    """Runs a command in a folder with nothing but `examples/`; what it prints."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    def run(command: str) -> str:
        here = command.replace("http://127.0.0.1:8000/", f"{bundled.api.url}/")
        assert here != command
        done = subprocess.run(
            ["bash", "-c", here],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def agrees(said: Any, got: Any, name: str = "") -> bool:
    """Whether an answer has all that README shows of it; `…` stands for what README leaves out.

    Ids, hashes, the port and times are each answer's own.
    """
    if isinstance(said, dict):
        shown = {one: value for one, value in said.items() if one != "…"}
        return all(one in got and agrees(value, got[one], one) for one, value in shown.items())
    if isinstance(said, list):
        return len(said) == len(got) and all(map(agrees, said, got))
    patterns = {
        "id": UUID,
        "sha256": "[0-9a-f]{64}",
        "url": rf"http://127\.0\.0\.1:\d+/jobs/{UUID}/images/0",
    }
    if name in patterns:
        return re.fullmatch(patterns[name], got) is not None
    if name.endswith("_seconds"):
        return isinstance(got, float) and got >= 0
    return bool(said == got)


def test_there_are_four_commands_and_each_waits_for_its_job() -> None:
    assert len(COMMANDS) == 4
    assert all("-H 'Prefer: wait=60'" in command for command in COMMANDS)
    assert [bool(MADE.search(command)) for command in COMMANDS] == [False, True, True, True]


def test_the_first_command_answers_the_job_that_the_readme_shows(curl) -> None:
    """First of all here, so that its image prompt is new to the worker."""
    [shown] = [block for language, block in BLOCKS if language == "json"]
    got = json.loads(curl(COMMANDS[0]))
    assert agrees(json.loads(shown), got), got


def test_without_prefer_it_answers_at_once_with_a_queued_job(curl) -> None:
    """A worker may have started the job, or even ended it, when it is shown."""
    assert '(without `Prefer` at once, with `202` and `"status": "queued"`)' in README
    command = COMMANDS[0].replace(" -H 'Prefer: wait=60'", r" -w '\n%{http_code}'")
    body, _, status = curl(command).rpartition("\n")
    assert status == "202"
    assert json.loads(body)["status"] in ("queued", "processing", "succeeded")


@pytest.mark.parametrize("command", COMMANDS[1:], ids=lambda command: MADE.search(command)[1])
def test_the_others_leave_a_picture_that_was_made_as_asked(
    curl, tmp_path: Path, command: str
) -> None:
    assert not curl(command)
    image = Image.open(io.BytesIO((tmp_path / MADE.search(command)[1]).read_bytes()))
    image.load()
    assert (image.format, image.size) == ("PNG", (128, 128))
    made = read_recipe(image)
    text = TEXT.search(command)
    assert made["prompt"] == (text[1] if text else "")
    assert (made["control_image"] is not None) == (MAP in command)
    assert len(image.convert("RGB").getcolors(128 * 128)) > 1, "a picture, not a plane"
