"""`imageprompt again` says in one line what it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from service.cli.generate import recipe_fields
from service.core.catalog import load_catalog
from service.core.param_types import StoredUpload
from service.core.params import GenerateRequest, OutputFormat
from service.core.picture_metadata import exif, recipe_text
from service.core.schema import parse_form, picture_metadata
from service.core.settings import ROOT
from service.submission.validate import validate
from tests.requests import generate_request

SHA = "ab" * 32


def again(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli.main", "again", *map(str, arguments)]
    command += ["--url", "http://127.0.0.1:9"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A picture with a recipe that names one upload."""
    upload = StoredUpload(key="uploads/a/b", sha256=SHA, pixels_sha256=SHA, width=9, height=8)
    recipe = picture_metadata(generate_request(image=(upload,)))
    path = tmp_path / "made.jpeg"
    Image.new("RGB", (8, 8)).save(path, exif=exif(recipe_text(recipe), ""))
    return path


def test_a_picture_without_a_recipe_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(plain)
    run = again(plain)
    assert (run.returncode, run.stdout) == (1, "")
    assert "carries no recipe" in run.stderr
    plain.write_text("not a picture")
    run = again(plain)
    assert run.returncode == 1
    assert "is not a PNG, JPEG or WebP picture" in run.stderr
    assert run.stderr.count("\n") == 1


def test_an_upload_that_lacks_is_named(made: Path) -> None:
    run = again(made)
    assert run.returncode == 1
    assert "image of 9 x 8 pixels" in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_recipe_is_sent_as_the_form_takes_it() -> None:
    recipe = picture_metadata(generate_request(deterministic=True, image_weights=(1.0, 0.25)))
    sent = recipe_fields(recipe | {"weights": {"base": "x"}, "from_the_future": 1, "lora": []})
    assert sent["deterministic"] == "true"
    assert sent["image_weights"] == "1.0,0.25"
    assert sent["seed"] == str(recipe["seed"])
    assert not {
        "weights",
        "from_the_future",
        "webhook_url",
        "control_scale",
        "lora",
        "image",
    } & set(sent)


def test_a_recipe_asks_for_the_very_request_that_it_came_from() -> None:
    """Also where it has parameters of uploads that it does not name."""
    upload = StoredUpload(key="uploads/a/b", sha256=SHA, pixels_sha256=SHA, width=9, height=8)
    uploads = {"image": (upload, upload), "control_image": (upload,)}
    counts = {name: len(files) for name, files in uploads.items()}
    catalog = load_catalog(ROOT / "models" / "shapes.yaml")

    def request(sent: dict[str, str], seed: int) -> GenerateRequest:
        form = parse_form(GenerateRequest, sent)
        valid = validate(form, counts, catalog, seed=seed, output_format=OutputFormat.PNG)
        return valid.with_uploads(uploads)

    first = request({"prompt": "a star", "deterministic": "true", "control_scale": "0.3"}, 5)
    recipe = json.loads(recipe_text(picture_metadata(first)))
    assert request(recipe_fields(recipe), 6) == first
