"""The commands beside `generate` and `again`: what they print, how they find the service."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service import __version__
from service.cli.jobs import reach
from service.cli.up import API_URL, KEY, REDIS_URL
from service.core.settings import ROOT
from tests.running import until
from tests.service.conftest import PNG, Api

COMMAND = [sys.executable, "-m", "service.cli.main"]
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("IMAGEPROMPT_")
} | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def run(
    *arguments: str, folder: Path, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command in a folder whose `data` tells where the service is."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=ENVIRONMENT | (settings or {}),
    )


def test_up_names_wrong_settings_before_it_starts_anything(tmp_path: Path) -> None:
    settings = {"IMAGEPROMPT_DRAIN_SECONDS": "soon", "IMAGEPROMPT_REDIS_ULR": "x"}
    refused = run("up", folder=tmp_path, settings=settings)
    unknown, wrong = refused.stderr.splitlines()
    assert refused.returncode == 1
    assert "IMAGEPROMPT_REDIS_ULR (did you mean IMAGEPROMPT_REDIS_URL?)" in unknown
    assert wrong.startswith("imageprompt: IMAGEPROMPT_DRAIN_SECONDS: ")
    assert not list((tmp_path / "data" / "logs").iterdir())


def test_up_says_what_it_does_not_use_and_what_is_wrong_with_its_models(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").touch()
    settings = {
        "IMAGEPROMPT_REDIS_URL": "redis://example.com",
        "IMAGEPROMPT_MODELS": str(tmp_path / "models.yaml"),
    }
    refused = run("up", "--port", "0", folder=tmp_path, settings=settings)
    unused, wrong = refused.stderr.splitlines()
    assert refused.returncode == 1
    assert unused == "IMAGEPROMPT_REDIS_URL is not used: `up` has its own"
    assert "models.yaml is empty" in wrong


def test_up_leaves_nothing_where_its_port_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        refused = run("up", "--port", str(other.getsockname()[1]), folder=tmp_path)
    assert refused.returncode == 1
    assert "is in use; choose another one with --port" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_without_the_servers_packages_the_command_says_what_it_needs(tmp_path: Path) -> None:
    """As after `pip install .`, which installs the Python client."""
    lacking = (
        "import sys; sys.modules['typer'] = None; from imageprompt.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", lacking],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("imageprompt: the command line needs the package typer")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def here(api: Api, tmp_path: Path) -> Path:
    """A folder as a running `imageprompt up` leaves it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / API_URL).write_text(api.running.url)
    (tmp_path / "in.png").write_bytes(PNG)
    return tmp_path


def test_without_a_command_it_prints_its_help(tmp_path: Path) -> None:
    bare = run(folder=tmp_path)
    assert (bare.returncode, bare.stderr) == (0, "")
    for name in ("generate", "again", "jobs", "show", "cancel", "delete", "up", "keys", "demo"):
        assert f" {name} " in bare.stdout
    assert "Exit status: 0 for success, 2 for wrong usage" in bare.stdout
    assert run("--version", folder=tmp_path).stdout == f"imageprompt {__version__}\n"
    assert run("nonsense", folder=tmp_path).returncode == 2
    keys = run("keys", folder=tmp_path)
    assert (keys.returncode, keys.stderr) == (0, "")
    assert " revoke " in keys.stdout


def test_a_picture_is_not_written_under_the_name_of_another_format(here: Path) -> None:
    refused = run(*("generate", "in.png", "-o", "out.png", "--output-format", "webp"), folder=here)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "out.png is no name of a webp file" in refused.stderr


def test_a_port_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    refused = run("up", "--port", "70000", folder=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--port" in refused.stderr


@pytest.mark.parametrize("name", ["generate", "again", "jobs", "up", "keys create"])
def test_every_option_has_a_help_text(name: str, tmp_path: Path) -> None:
    shown = run(*name.split(), "--help", folder=tmp_path).stdout
    rows = [line.strip("│ ") for line in shown.splitlines() if line.strip("│ *").startswith("--")]
    assert len(rows) > 2
    for row in rows:
        assert len(row.split("  ")[-1].split()) > 1, row


def test_a_job_is_listed_shown_canceled_and_deleted(api: Api, here: Path) -> None:
    job_id = api.post().json()["id"]
    listed = run("jobs", "--limit", "1", folder=here)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.startswith(f"{job_id}  queued      20"), "whole also in a pipe"
    assert listed.stdout.count("\n") == 1
    assert json.loads(run("show", job_id, folder=here).stdout)["id"] == job_id
    assert run("cancel", job_id, folder=here).stdout == f"{job_id}  canceled\n"
    assert run("delete", job_id, folder=here).stdout == f"{job_id}  deleted\n"
    gone = run("show", job_id, folder=here)
    assert gone.returncode == 1
    assert gone.stderr.count("\n") == 1
    assert "404" in gone.stderr


def polls(api: Api) -> int:
    """How often the API was asked for a job."""
    return api.running.log.read_text().count('"route": "/jobs/{job_id}", "method": "GET"')


def test_files_may_be_named_by_urls(api: Api, here: Path) -> None:
    """This service fetches none; its answer tells that the URL has reached it."""
    both = ("in.png", "--image-url", "https://example.com/a.png", "--out", "out.png")
    refused = run("generate", *both, folder=here)
    assert refused.returncode == 1
    assert "image" in refused.stderr
    assert "does not fetch" in " ".join(refused.stderr.split())
    without = run("generate", "--out", "out.png", folder=here)
    assert without.returncode == 2
    assert "IMAGE or --image-url is needed" in without.stderr


def test_ctrl_c_cancels_the_job_and_names_it(api: Api, here: Path) -> None:
    before = polls(api)
    # In the background of a shell the tests ignore SIGINT, and what they start would inherit that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        waiting = subprocess.Popen(
            [*COMMAND, "generate", "in.png", "-o", "out.png"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=here,
            env=ENVIRONMENT,
        )
    finally:
        signal.signal(signal.SIGINT, inherited)
    until(lambda: polls(api) > before, what="its first poll")
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=60)
    job_id = api.client.get("/jobs").json()["jobs"][0]["id"]
    assert waiting.returncode == 130
    assert errors.splitlines()[-1] == f"imageprompt: interrupted; job {job_id} canceled"
    assert api.client.get(f"/jobs/{job_id}").json()["status"] == "canceled"


def test_the_first_key_is_kept_for_the_commands_of_its_folder(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readable by its owner alone, until it is revoked; no other service is shown it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / REDIS_URL).write_text(redis_url)
    (tmp_path / "data" / API_URL).write_text("http://127.0.0.1:9")
    made = json.loads(run("keys", "create", "ann", folder=tmp_path).stdout)
    run("keys", "create", "bob", folder=tmp_path)
    kept = tmp_path / "data" / KEY
    assert json.loads(kept.read_text()) == {"id": made["id"], "key": made["key"]}
    assert kept.stat().st_mode & 0o077 == 0
    monkeypatch.chdir(tmp_path)
    assert reach(None, None) == ("http://127.0.0.1:9", made["key"])
    assert reach(None, "other") == ("http://127.0.0.1:9", "other")
    assert reach("http://127.0.0.1:7", None) == ("http://127.0.0.1:7", None)
    assert run("keys", "revoke", made["id"], folder=tmp_path).returncode == 0
    assert not kept.exists()
