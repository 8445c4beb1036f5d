"""A field is declared once: forms, documents, options, views and metadata follow."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image
from redis import Redis

from service.cli import processes
from service.core import redis_keys
from service.core.picture_metadata import read_recipe
from tests.extended import ExtendedRequest
from tests.running import KEEP, Running
from workers.images import PictureEncoder

ROOT = Path(__file__).parents[2]


def png(colour: str) -> bytes:
    """A small picture."""
    out = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(out, "PNG")
    return out.getvalue()


IMAGE, GLOW, NOTE = png("red"), png("green"), png("blue")


def extended(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the service with the extended declaration."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.extended", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "TERM": "dumb"},
    )


@pytest.fixture(scope="module")
def redis_url(fresh_redis_url: Callable[[], str]) -> str:
    """A database of Redis for all tests of this file."""
    return fresh_redis_url()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Running]:
    """The API with the extended declaration."""
    port = processes.free_port()
    folder = tmp_path_factory.mktemp("extended")
    settings = {"redis_url": redis_url, "storage_url": folder.as_uri(), "port": port}
    command = ["-W", "ignore", "-m", "tests.extended", "service"]
    with Running(command, port, settings, folder / "log", grace=15) as running:
        yield running.wait("/healthz/live")


def uri(data: bytes) -> str:
    """A file in JSON."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def post(api: Running, how: str) -> dict[str, Any]:
    """A job with every new field, as a form or as JSON."""
    fields = {"glow": 0.5, "note": "secret", "seed": 1}
    with httpx.Client(base_url=api.url, timeout=60, limits=KEEP) as client:
        if how == "form":
            files = [
                ("image", ("a", IMAGE)),
                ("glow_image", ("b", GLOW)),
                ("glow_image", ("c", GLOW)),
                ("note_image", ("d", NOTE)),
            ]
            answer = client.post("/generate", data=fields, files=files)
        else:
            uploads = {
                "image": [uri(IMAGE)],
                "glow_image": [uri(GLOW), uri(GLOW)],
                "note_image": uri(NOTE),
            }
            answer = client.post("/generate", json=fields | uploads)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("how", ["form", "json"])
def test_a_declared_field_reaches_the_worker_and_its_public_part_the_client(
    api: Running, redis_url: str, how: str
) -> None:
    job = post(api, how)
    glow = {"sha256": hashlib.sha256(GLOW).hexdigest(), "width": 24, "height": 16}
    shown = job["input"]
    assert (shown["glow"], shown["glow_blur"], shown["glow_image"]) == (0.5, 3, [glow, glow])
    assert not {"note", "note_image"} & set(shown)
    assert "secret" not in json.dumps(job)
    with Redis.from_url(redis_url) as redis:
        record = redis.hget(redis_keys.job(job["id"]), "request")
    request = ExtendedRequest.model_validate_json(record)
    assert (request.note, request.note_image[0].sha256) == (
        "secret",
        hashlib.sha256(NOTE).hexdigest(),
    )
    for output_format in ("png", "webp"):
        wanted = request.model_copy(
            update={"output_format": request.output_format.__class__(output_format)}
        )
        file = PictureEncoder().encode(Image.new("RGB", (8, 8)), wanted, 0)
        found = read_recipe(Image.open(io.BytesIO(file.data)))
        assert found is not None
        assert found["glow"] == 0.5
        assert [one["sha256"] for one in found["glow_image"]] == [glow["sha256"]] * 2
        assert not {"note", "note_image", "webhook_url"} & set(found)
        assert "secret" not in str(found)
        assert "key" not in str(found), "storage keys stay inside"


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"glow": 2}, "glow"), ({"glow_blur": 1}, "glow_blur"), ({"note": "x" * 21}, "note")],
    ids=str,
)
def test_a_declared_range_holds(api: Running, fields: dict[str, object], named: str) -> None:
    for body in (
        {"data": fields, "files": {"image": IMAGE}},
        {"json": {"image": uri(IMAGE), **fields}},
    ):
        answer = httpx.post(f"{api.url}/generate", timeout=60, **body)
        assert answer.status_code == 422, answer.text
        assert [error["field"] for error in answer.json()["errors"]] == [named]


def test_a_declared_upload_has_its_limit(api: Running) -> None:
    files = [("image", IMAGE), *[("glow_image", GLOW)] * 3]
    answer = httpx.post(f"{api.url}/generate", timeout=60, files=files)
    assert [error["field"] for error in answer.json()["errors"]] == ["glow_image"]


def test_openapi_has_what_is_declared() -> None:
    run = extended("service.openapi")
    assert run.returncode == 0, run.stderr
    schemas = yaml.safe_load(run.stdout)["components"]["schemas"]
    form, body = schemas["GenerateForm"]["properties"], schemas["GenerateJson"]["properties"]
    assert form["glow"]["maximum"] == 1
    assert form["glow"]["default"] == 0.25
    assert form["glow_image"]["maxItems"] == 2
    assert form["glow_image"]["items"]["format"] == "binary"
    assert {"glow", "glow_image", "glow_blur", "note", "note_image"} <= set(body)
    shown = set(schemas["Input"]["properties"])
    assert {"glow", "glow_image", "glow_blur"} <= shown
    assert not {"note", "note_image"} & shown


def test_the_command_line_has_what_is_declared(api: Running, tmp_path: Path) -> None:
    shown = extended("service.cli.main", "generate", "--help")
    assert shown.returncode == 0, shown.stderr
    for option in ("--glow", "--glow-image", "--glow-blur", "--note", "--note-image"):
        assert option in shown.stdout, shown.stdout
    assert "How much the picture glows." in shown.stdout
    image = tmp_path / "image.png"
    image.write_bytes(IMAGE)
    options = ("--url", api.url, "--out", str(tmp_path / "out.png"), "--glow", "7")
    sent = extended("service.cli.main", "generate", str(image), *options)
    assert sent.returncode == 1
    assert "glow: " in sent.stderr
