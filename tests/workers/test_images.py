"""A picture tells how it was made."""

import io

import pytest
from PIL import Image

from service.core.params import GenerateRequest, StoredUpload
from tests.requests import generate_request
from workers import images

SHA = "ab" * 32


def request(output_format: str) -> GenerateRequest:
    return generate_request(
        image=(StoredUpload(key="uploads/a/b", sha256=SHA, pixels_sha256=SHA, width=9, height=8),),
        image_weights=(1.0,),
        control_image=(
            StoredUpload(key="uploads/a/c", sha256=SHA, pixels_sha256=SHA, width=9, height=8),
        ),
        control_type="outline",
        control_scale=0.5,
        control_start=0.0,
        control_end=1.0,
        prompt="\N{ROCKET}" * 2000,
        negative_prompt="\N{LATIN SMALL LETTER E WITH ACUTE}" * 2000,
        ip_scale=0.7,
        steps=9,
        scheduler="euler",
        seed=40,
        num_images=3,
        output_format=output_format,
        webhook_url="https://example.org/secret",
    )


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_every_parameter_can_be_read_from_the_file(output_format: str) -> None:
    wanted = request(output_format)
    file = images.encode(Image.new("RGB", (64, 64), "red"), wanted, 2)
    opened = Image.open(io.BytesIO(file.data))
    assert opened.format == output_format.upper()
    assert file.content_type == f"image/{output_format}"
    found = images.read_parameters(opened)
    assert found is not None
    assert found["seed"] == 42
    assert found["num_images"] == 1
    assert found["prompt"] == wanted.prompt
    assert found["control_scale"] == 0.5
    assert found["image"][0]["sha256"] == SHA
    left_out = set(GenerateRequest.model_fields) - set(found)
    assert left_out == {"webhook_url"}


def test_no_storage_key_leaves_with_the_picture() -> None:
    file = images.encode(Image.new("RGB", (64, 64)), request("png"), 0)
    assert b"uploads/" not in file.data


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_same_request_gives_same_bytes(output_format: str) -> None:
    image = Image.radial_gradient("L").convert("RGB")
    first = images.encode(image, request(output_format), 0)
    assert images.encode(image, request(output_format), 0) == first


def test_foreign_picture_has_no_parameters() -> None:
    assert images.read_parameters(Image.new("RGB", (8, 8))) is None
