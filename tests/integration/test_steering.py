"""The parameters of the second part of the contract, from the form to the picture."""

import io

from PIL import Image

from service.core.picture_metadata import read_recipe
from tests.integration.test_requests import opened
from tests.stack import Service, picture


def succeeded(service: Service, files: dict[str, list[bytes]], **fields: object) -> dict:
    """A job of these files and fields, once it has ended."""
    uploads = [(name, (name, data)) for name, all_of in files.items() for data in all_of]
    data = {"steps": 4, "seed": 5, **fields}
    answer = service.client.post(
        "/generate", files=uploads, data={name: str(value) for name, value in data.items()}
    )
    assert answer.status_code == 202, answer.text
    return service.succeeded(answer.json()["id"])


def test_a_masked_job_repaints_white_and_keeps_black(service: Service) -> None:
    init = picture(40, (64, 64))
    black = Image.new("L", (64, 64))
    black.paste(255, (0, 0, 32, 64))
    mask = _png(black)
    job = succeeded(service, {"image": [picture(1)], "init_image": [init], "mask_image": [mask]})
    assert (job["input"]["strength"], job["input"]["width"]) == (1.0, job["input"]["height"])
    made, original = opened(service.image(job["id"])).convert("RGB"), opened(init).convert("RGB")
    box = (40, 0, 64, 64)
    original = original.resize(made.size)
    assert made.crop(box).tobytes() == original.crop(box).tobytes()
    assert made.crop((0, 0, 24, 64)).tobytes() != original.crop((0, 0, 24, 64)).tobytes()
    found = read_recipe(opened(service.image(job["id"])))
    assert found["mask_image"]["sha256"] == job["input"]["mask_image"]["sha256"]


def test_every_way_to_steer_can_be_combined(service: Service) -> None:
    job = succeeded(
        service,
        {
            "image": [picture(1), picture(2)],
            "image_mask": [picture(3), picture(4)],
            "negative_image": [picture(5)],
            "control_image": [picture(6), picture(7)],
        },
        control_scale="0.5,0.8",
        control_preprocess="none,canny",
        image_adapter="base,plus",
        ip_scale="0.7,0.4",
        ip_start=0.1,
        ip_end=0.9,
        guidance_start=0.2,
        scheduler="euler",
        sigmas="karras",
        clip_skip=1,
    )
    shown = job["input"]
    assert shown["control_type"] == ["outline", "outline"]
    assert shown["control_preprocess"] == ["none", "canny"]
    assert shown["ip_scale"] == [0.7, 0.4]
    assert shown["image_adapter"] == ["base", "plus"]
    assert len(shown["image_mask"]) == 2
    assert job["warnings"] == []


def test_what_was_cut_off_is_told(service: Service) -> None:
    job = succeeded(service, {"image": [picture(1)]}, prompt="star " * 390)
    assert {warning["code"] for warning in job["warnings"]} == {"prompt-truncated"}
    assert all(warning["message"] for warning in job["warnings"])


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_the_map_that_was_made_can_be_fetched(service: Service) -> None:
    files = {"image": [picture(1)], "control_image": [picture(6), picture(7)]}
    job = succeeded(service, files, control_preprocess="canny,none")
    [made] = job["maps"]
    answer = service.client.get(made["url"])
    assert answer.headers["content-type"] == made["content_type"] == "image/png"
    colours = opened(answer.content).convert("RGB").getcolors()
    assert {colour for _, colour in colours or []} <= {(0, 0, 0), (255, 255, 255)}
    assert service.client.get(made["url"].replace("maps/0", "maps/1")).status_code == 404
