"""What the facades make of a body: the request of POST /generate, or a refusal that names a field.

Nothing that was sent is dropped or changed silently.
"""

import asyncio
import base64
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.core.errors import InvalidField, ServiceError
from service.core.schema import Declaration
from service.routes import huggingface, openai, replicate
from service.submission.body import BodyLimits, read_body
from service.submission.form import Form
from tests.service.conftest import PNG, Api, problem

LIMITS = BodyLimits(max_body_bytes=2**26, max_file_bytes=2**25, timeout_seconds=60)
DIGITS = base64.b64encode(PNG).decode()
JSON = "application/json"
FACADES: dict[str, tuple[Declaration, dict[str, str]]] = {
    "huggingface": (huggingface.InferenceRequest, {"inside": "parameters", "raw": "inputs"}),
    "openai": (openai.ImagesRequest, {}),
    "replicate": (replicate.PredictionRequest, {"inside": "input"}),
}


def asked(facade: str, body: object, kind: str = JSON, piece: int = 2**16) -> tuple[Any, Any]:
    """The parameters of POST /generate that a body stands for, and its files."""
    declaration, options = FACADES[facade]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), piece):
            yield data[start : start + piece]

    headers = {"content-type": kind}
    with asyncio.run(read_body(declaration, headers, pieces(), LIMITS, **options)) as form:
        made = translated(facade, form)
        values = made.parse().model_dump(exclude_unset=True)
        files = {
            name: [upload.content.read() for upload in uploads]
            for name, uploads in made.files.items()
        }
    return values, files


def translated(facade: str, form: Form) -> Form:
    sent = form.parse()
    if facade == "huggingface":
        return huggingface.translate(form, sent, "tiny")
    if facade == "openai":
        return openai.translate(form, sent)
    return replicate.translate(form, sent, "tiny")


@pytest.mark.parametrize("piece", [1, 7, 2**16])
@pytest.mark.parametrize(
    "inputs",
    [
        DIGITS,
        DIGITS.rstrip("="),
        f"data:image/png;base64,{DIGITS}",
        f"DATA:image/png;BASE64,{DIGITS}",
    ],
    ids=["base64", "unpadded", "uri", "upper"],
)
def test_inputs_may_be_a_picture(inputs: str, piece: int) -> None:
    values, files = asked("huggingface", {"inputs": inputs, "parameters": {"seed": 5}}, JSON, piece)
    assert (values["seed"], files, "prompt" in values) == (5, {"image": [PNG]}, False)
    slashes = json.dumps({"inputs": inputs}).replace("/", "\\/").encode()
    assert asked("huggingface", slashes, JSON, piece)[1] == {"image": [PNG]}


@pytest.mark.parametrize("piece", [1, 7, 2**16])
@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a",
        "a red star",
        "iVBORw0KGgo is how a PNG starts",
        "https://a.example/a.png",
        "data: none, yet",
        'say "star"',
        "\u00fc" * 2000,
    ],
)
def test_inputs_may_be_a_prompt(prompt: str, piece: int) -> None:
    values, files = asked("huggingface", {"inputs": prompt, "parameters": None}, JSON, piece)
    assert (values["prompt"], values["num_images"], files) == (prompt, 1, {})


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "", "multipart/x"])
def test_a_body_of_another_type_is_the_picture(kind: str) -> None:
    assert asked("huggingface", PNG, kind)[1] == {"image": [PNG]}


@pytest.mark.parametrize("kind", ["APPLICATION/JSON", "Application/Json; charset=UTF-8"])
@pytest.mark.parametrize("facade", FACADES)
def test_content_types_are_read_in_either_case(facade: str, kind: str) -> None:
    body = {"inputs": "x"} if facade == "huggingface" else {"prompt": "x"}
    assert asked(facade, body, kind)[0]["prompt"] == "x"


@pytest.mark.parametrize(
    ("facade", "body", "field"),
    [
        ("huggingface", {}, "inputs"),
        ("huggingface", {"inputs": None}, "inputs"),
        ("huggingface", {"inputs": 5}, "inputs"),
        ("huggingface", {"inputs": [DIGITS]}, "inputs"),
        ("huggingface", {"inputs": {"a": DIGITS}}, "inputs"),
        ("huggingface", {"inputs": DIGITS[:-9] + "?" * 9}, "inputs"),
        ("huggingface", {"inputs": "data:image/png,abc"}, "inputs"),
        ("huggingface", {"inputs": "a", "options": {"wait_for_model": True}}, "options"),
        ("huggingface", {"inputs": "a", "parameters": {"steps": 3, "mood": 1}}, "mood"),
        ("huggingface", {"inputs": "a", "parameters": 0}, "parameters"),
        ("huggingface", {"inputs": "a", "parameters": ""}, "parameters"),
        ("huggingface", {"inputs": "a", "parameters": []}, "parameters"),
        ("huggingface", {"inputs": "a", "parameters": {"num_images": 3}}, "num_images"),
        ("huggingface", {"inputs": "a", "parameters": {"prompt": "b"}}, "inputs"),
        ("huggingface", {"inputs": "a", "parameters": {"model": "other"}}, "the path"),
        ("huggingface", b'{"inputs": "a", "inputs": "b"}', "inputs"),
        ("huggingface", b'{"inputs": "a", "parameters": {"seed": 1, "seed": 2}}', "seed"),
        (
            "huggingface",
            {"inputs": "a", "parameters": {"steps": 3, "num_inference_steps": 4}},
            "num_inference_steps",
        ),
        (
            "huggingface",
            {"inputs": "a", "parameters": {"width": 64, "target_size": {"width": 128}}},
            "target_size",
        ),
        ("huggingface", {"inputs": "a", "parameters": {"target_size": 5}}, "target_size"),
        ("huggingface", {"inputs": "a", "parameters": {"target_size": {"w": 5}}}, "target_size"),
        ("openai", {"n": 2, "num_images": 3}, "n"),
        ("openai", {"steps": 3, "num_inference_steps": 4}, "num_inference_steps"),
        ("openai", {"size": "128x128", "width": 64}, "size"),
        ("openai", {"size": "128x128", "height": 64}, "size"),
        ("openai", {"size": "\u0661\u0662\u0668x128"}, "size"),
        ("openai", {"image": [f"data:;base64,{DIGITS}"] * 8, "image_url": "https://a/b"}, "image"),
        (
            "openai",
            dict.fromkeys(("image", "mask", "init_image"), f"data:;base64,{DIGITS}"),
            "mask",
        ),
        ("replicate", {"input": 0}, "input"),
        ("replicate", {"input": ""}, "input"),
        ("replicate", {"input": []}, "input"),
        ("replicate", {"input": False}, "input"),
        ("replicate", {"input": {"num_outputs": 2, "num_images": 3}}, "num_outputs"),
        ("replicate", {"input": {"steps": 3, "num_inference_steps": 4}}, "num_inference_steps"),
        ("replicate", {"input": {"model": "other"}}, "version"),
        (
            "replicate",
            {"input": {"webhook_url": "https://a.example/"}, "webhook": "https://b.example/"},
            "webhook",
        ),
        (
            "replicate",
            {"webhook": "https://a.example/", "webhook_completed": "https://b.example/"},
            "webhook_completed",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_named(facade: str, body: object, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        asked(facade, body)
    assert [error.field for error in caught.value.errors] == [field]


@pytest.mark.parametrize(
    ("facade", "body", "expected"),
    [
        (
            "huggingface",
            {"inputs": "a", "parameters": {"steps": 3, "num_inference_steps": None, "width": None}},
            {"steps": 3},
        ),
        (
            "huggingface",
            {"inputs": "a", "parameters": {"num_inference_steps": 3, "steps": None}},
            {"steps": 3},
        ),
        (
            "huggingface",
            {"inputs": "a", "parameters": {"width": 64, "target_size": {"width": 64, "height": 8}}},
            {"width": 64, "height": 8},
        ),
        ("huggingface", {"inputs": "a", "parameters": {"prompt": None}}, {"prompt": "a"}),
        ("openai", {"n": 2, "num_images": 2, "size": "64x8"}, {"num_images": 2, "height": 8}),
        ("openai", {"n": None, "num_images": 2, "size": "auto", "width": 64}, {"width": 64}),
        ("replicate", {"input": {"num_outputs": 2, "num_images": None}}, {"num_images": 2}),
        ("replicate", {"input": None}, {"model": "tiny"}),
        ("replicate", {"input": {"model": "tiny"}}, {"model": "tiny"}),
    ],
    ids=str,
)
def test_null_is_absent_and_the_same_twice_is_right(
    facade: str, body: object, expected: dict[str, object]
) -> None:
    assert expected.items() <= asked(facade, body)[0].items()


@pytest.mark.parametrize(
    "middle",
    [
        b'"parameters":{"a":[' + b"[]," * 90_000 + b"[]]}",
        b'"parameters":{' + b",".join(b'"p%d":1' % one for one in range(30_000)) + b"}",
        b'"parameters":{"image_weights":[' + b"1," * 120_000 + b"1]}",
        b'"parameters":{"negative_prompt":"' + rb"\"" * 150_000 + b'"}',
        b'"parameters":{"a"' + b":" * 200_000 + b"1}",
        b'"parameters":{"' + b"k" * 200_000 + b'"' + b":" * 50_000 + b"1}",
        b'"parameters":' + b" " * 300_000 + b"{}",
    ],
    ids=lambda text: text[:28].decode(),
)
def test_all_but_files_is_bounded_before_it_is_parsed(
    middle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.submission.json_body.json.loads", _not_to_be_called)
    with pytest.raises(ServiceError, match=r"far more values|larger than") as caught:
        asked("huggingface", b'{"inputs":"a",' + middle + b"}")
    assert caught.value.status in (400, 413)


def _not_to_be_called(text: str, **_: object) -> object:
    assert text.startswith('"'), "only names"
    return text.strip('"')


@pytest.mark.parametrize(
    ("kind", "start"), [("image/png", b""), (JSON, b'{"inputs": "' + DIGITS[:64].encode())]
)
def test_a_picture_is_not_held_in_memory(kind: str, start: bytes) -> None:
    declaration, options = FACADES["huggingface"]

    async def endless() -> AsyncIterator[bytes]:
        yield start
        for _ in range(2**4):
            yield b"A" * 2**20
        raise OSError

    tracemalloc.start()
    try:
        with pytest.raises(ServiceError):
            asyncio.run(
                read_body(declaration, {"content-type": kind}, endless(), LIMITS, **options)
            )
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("path", ["/generate", "/hf/shapes", "/v1/images/generations", "/v1/files"])
def test_a_coded_body_is_refused(api: Api, path: str) -> None:
    answer = api.client.post(path, json={}, headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")


def test_hugging_face_hears_of_a_wrong_picture(api: Api) -> None:
    for inputs in ({"content": PNG[:60]}, {"json": {"inputs": DIGITS[:64]}}):
        answer = api.client.post("/hf/shapes", **inputs)  # type: ignore[arg-type]
        problem(answer, 400)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"\ud800":1}',
        rb'{"prompt":"\ud800"}',
        rb'{"input":{"\ud800":1}}',
        rb'{"parameters":{"\udfff":{"a":1}}}',
        rb'{"image":["\ud800"]}',
        b'{"prompt":' + b"[" * 500 + b"]" * 500 + b"}",
        b"[" * 5_000,
    ],
)
@pytest.mark.parametrize(
    "path", ["/generate", "/hf/shapes", "/v1/images/generations", "/v1/predictions", "/v1/files"]
)
def test_json_that_cannot_be_written_again_is_malformed(api: Api, path: str, body: bytes) -> None:
    answer = api.client.post(path, content=body, headers={"content-type": JSON})
    assert answer.status_code == 400, answer.text
    assert "not valid Unicode" in answer.text or "deep" in answer.text or "formed" in answer.text
