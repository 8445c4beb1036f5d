"""POST /generate by its fields: what is taken as sent, what is filled in, what is refused."""

import hashlib

import pytest

from service.core import redis_keys
from service.core.queue import TASK, open_queue
from tests import corpus
from tests.service.conftest import PNG, Api, problem


def test_silence_is_filled_with_the_defaults_of_the_model(api: Api) -> None:
    answer = api.post()
    assert answer.status_code == 202
    job = answer.json()
    assert (
        answer.headers["location"] == job["urls"]["self"] == f"{api.running.url}/jobs/{job['id']}"
    )
    assert int(answer.headers["retry-after"]) >= 1
    shown = job["input"]
    seed = shown.pop("seed")
    assert 0 <= seed < 2**32
    assert shown == {
        "image": [{"sha256": hashlib.sha256(PNG).hexdigest(), "width": 24, "height": 16}],
        "image_weights": [1.0],
        "image_adapter": None,
        "image_mask": [],
        "negative_image": [],
        "prompt": "",
        "negative_prompt": "",
        "lora": [],
        "init_image": None,
        "strength": 1.0,
        "mask_image": None,
        "mask_blur": 0.0,
        "control_image": None,
        "control_type": None,
        "control_scale": None,
        "control_start": None,
        "control_end": None,
        "control_preprocess": None,
        "ip_scale": 1.0,
        "ip_target": "all",
        "ip_start": 0.0,
        "ip_end": 1.0,
        "crop": "center",
        "model": "shapes",
        "adapter": "base",
        "width": 128,
        "height": 128,
        "steps": 30,
        "guidance_scale": 3.5,
        "guidance_start": 0.0,
        "guidance_end": 1.0,
        "scheduler": "ddim",
        "sigmas": "default",
        "clip_skip": 0,
        "num_images": 1,
        "output_format": "png",
        "deterministic": False,
        "preview_every": None,
        "webhook_url": None,
    }
    assert (job["status"], job["started_at"], job["error"]) == ("queued", None, None)


def test_text_beside_the_picture_halves_the_default_scale(api: Api) -> None:
    assert api.post({"prompt": "a red star"}).json()["input"]["ip_scale"] == 0.5
    given_scale = api.post({"prompt": "a red star", "ip_scale": 0})
    assert given_scale.json()["input"]["ip_scale"] == 0


def test_every_field_is_taken_as_sent(api: Api) -> None:
    sent = {
        "image_weights": "0.5,2",
        "prompt": "grün",
        "negative_prompt": "bad",
        "ip_scale": 0.7,
        "control_type": "outline",
        "control_scale": 0.8,
        "control_start": 0.1,
        "control_end": 0.9,
        "crop": "pad",
        "model": "shapes",
        "adapter": "plus",
        "width": 64,
        "height": 256,
        "steps": 7,
        "guidance_scale": 1,
        "guidance_end": 0.5,
        "scheduler": "euler",
        "seed": 2**32 - 4,
        "num_images": 4,
        "output_format": "webp",
        "deterministic": "true",
        "webhook_url": "https://example.org/hook",
    }
    other = corpus.saved(corpus.picture(3), "JPEG")
    files = [("image", ("a", PNG)), ("image", ("b", other)), ("control_image", ("c", PNG))]
    shown = api.post(sent, files=files).json()["input"]
    assert [image["sha256"] for image in shown["image"]] == [
        hashlib.sha256(data).hexdigest() for data in (PNG, other)
    ]
    assert shown.pop("control_image")["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert shown.pop("image_weights") == [0.5, 2]
    assert shown.pop("deterministic") is True
    for name, value in sent.items():
        if name in shown:
            assert shown[name] == value, name


def test_the_queue_carries_the_id_alone_and_storage_the_pixels(api: Api) -> None:
    job_id = api.job()
    rq_job = open_queue("imageprompt", api.redis).fetch_job(job_id)
    assert rq_job is not None
    assert (rq_job.func_name, list(rq_job.args)) == (TASK, [job_id])
    assert [path.name for path in (api.folder / "uploads" / job_id).iterdir()] == ["image-0.png"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps": 0}, {"steps"}),
        ({"steps": 101}, {"steps"}),
        ({"steps": "many"}, {"steps"}),
        ({"width": 100, "height": 13}, {"width", "height"}),
        ({"width": 512}, {"width"}),
        ({"width": 32}, {"width"}),
        ({"ip_scale": 2.1}, {"ip_scale"}),
        ({"ip_scale": "nan"}, {"ip_scale"}),
        ({"guidance_scale": "inf"}, {"guidance_scale"}),
        ({"guidance_scale": 20.5}, {"guidance_scale"}),
        ({"guidance_end": 1.1}, {"guidance_end"}),
        ({"guidance_end": -0.1}, {"guidance_end"}),
        ({"guidance_end": "nan"}, {"guidance_end"}),
        ({"scheduler": "magic"}, {"scheduler"}),
        ({"scheduler": "lcm", "steps": 51}, {"scheduler", "steps"}),
        ({"seed": -1}, {"seed"}),
        ({"seed": 2**32}, {"seed"}),
        ({"num_images": 5}, {"num_images"}),
        ({"output_format": "gif"}, {"output_format"}),
        ({"crop": "none"}, {"crop"}),
        ({"deterministic": "perhaps"}, {"deterministic"}),
        ({"model": "nope"}, {"model"}),
        ({"model": "../etc"}, {"model"}),
        ({"adapter": "nope"}, {"adapter"}),
        ({"image_weights": "1,1"}, {"image_weights"}),
        ({"image_weights": "x"}, {"image_weights"}),
        ({"image_weights": "0"}, {"image_weights"}),
        ({"control_type": "outline"}, {"control_type"}),
        ({"control_scale": 1}, {"control_scale"}),
        ({"webhook_url": "http://example.org"}, {"webhook_url"}),
        ({"webhook_url": "file:///etc/passwd"}, {"webhook_url"}),
        ({"prompt": "x" * 2001}, {"prompt"}),
        ({"steps": 0, "seed": -1, "crop": "x"}, {"steps", "seed", "crop"}),
        ({"prompts": "typo"}, {"prompts"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_a_wrong_field_is_named(api: Api, fields: dict[str, object], named: set[str]) -> None:
    before = api.leftovers()
    body = problem(api.post(fields), 422)
    assert {error["field"] for error in body["errors"]} == named
    assert all(name in body["detail"] for name in named)
    assert api.leftovers() == before


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"control_start": 0.5, "control_end": 0.5}, "control_start"),
        ({"control_start": 1}, "control_start"),
        ({"control_type": "depth"}, "control_type"),
        ({"control_scale": 3}, "control_scale"),
    ],
    ids=str,
)
def test_a_wrong_control_field_is_named(api: Api, fields: dict[str, object], named: str) -> None:
    files = [("image", ("a", PNG)), ("control_image", ("c", PNG))]
    body = problem(api.post(fields, files=files), 422)
    assert [error["field"] for error in body["errors"]] == [named]


def test_a_trace_is_taken_over_only_where_it_is_one(api: Api) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    good = api.post(headers={"traceparent": trace}).json()["id"]
    bad = api.post(headers={"traceparent": trace + "\tx"}).json()["id"]
    assert api.redis.hget(redis_keys.job(good), "traceparent") == trace.encode()
    assert api.redis.hget(redis_keys.job(bad), "traceparent") is None


def test_an_html_form_may_leave_fields_empty_and_repeat_names_as_frameworks_do(api: Api) -> None:
    """What a browser sends of a form whose optional inputs were left alone."""
    empty = ("steps", "seed", "ip_scale", "control_type", "webhook_url", "image_weights", "width")
    body = b"".join(corpus.part(name, b"") for name in empty)
    body += corpus.part("control_image", b"", filename="", kind="application/octet-stream")
    body += corpus.part("image[]", PNG, filename="a.png") + corpus.part(
        "image[]", PNG, filename="b"
    )
    answer = api.client.post(
        "/generate", content=body + corpus.END, headers={"content-type": corpus.MULTIPART}
    )
    assert answer.status_code == 202, answer.text
    shown = answer.json()["input"]
    assert (shown["steps"], shown["control_image"], len(shown["image"])) == (30, None, 2)
    unnamed = corpus.part("control_image", b"") + corpus.part("image", PNG) + corpus.END
    answer = api.client.post(
        "/generate", content=unnamed, headers={"content-type": corpus.MULTIPART}
    )
    assert answer.status_code == 202, answer.text
    truncated = api.post(files=[("image", ("a.png", b"", "image/png"))])
    assert problem(truncated, 400)["type"].endswith("invalid-image"), "a file that was chosen"
