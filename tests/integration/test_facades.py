"""The client packages that people have already, unchanged, against the running service."""

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import replicate
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from tests.stack import Service, picture

KEY = "any token while no key exists"


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.api.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.png"
    path.write_bytes(picture(1))
    return path


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def decoded(answer: Any, number: int = 0) -> bytes:
    return base64.b64decode(answer.data[number].b64_json)


def test_openai_edits_one_image_and_several(
    client: openai.OpenAI, service: Service, prompt: Path
) -> None:
    """Their bytes are those of the job that was made."""
    with prompt.open("rb") as file:
        one = client.images.edit(image=file, prompt="", extra_body={"seed": 5, "steps": 2})
    job = service.job(one.model_extra["id"])
    assert job["input"]["seed"] == one.data[0].model_extra["seed"] == 5
    assert decoded(one) == service.image(job["id"])
    several = client.images.edit(
        image=[picture(2), ("b.png", picture(3), "image/png")],
        prompt="a red star",
        n=2,
        size="96x64",
        output_format="webp",
        extra_body={"num_inference_steps": 2},
    )
    job = service.job(several.model_extra["id"])
    assert (len(job["input"]["image"]), len(several.data)) == (2, 2)
    image = opened(decoded(several, 1))
    assert (image.format, image.size) == ("WEBP", (96, 64))


def test_openai_generates_from_a_text_alone(client: openai.OpenAI, service: Service) -> None:
    answer = client.images.generate(
        prompt="a red star", quality="high", response_format="url", extra_body={"steps": 2}
    )
    job = service.job(answer.model_extra["id"])
    assert job["input"]["image"] == []
    assert answer.data[0].url == job["images"][0]["url"]


@pytest.mark.parametrize("field", ["image", "image_url"])
def test_openai_accepts_image_prompts_as_data_uris(
    client: openai.OpenAI, service: Service, field: str
) -> None:
    uri = "data:image/png;base64," + base64.b64encode(picture(4)).decode()
    answer = client.images.generate(prompt="", extra_body={field: [uri], "steps": 2})
    assert len(service.job(answer.model_extra["id"])["input"]["image"]) == 1


def test_openai_streams_partial_images_and_then_the_picture(
    client: openai.OpenAI, prompt: Path
) -> None:
    stream = client.images.edit(
        image=prompt, prompt="", stream=True, partial_images=2, extra_body={"steps": 8}
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_edit.completed"
    assert set(kinds[:-1]) <= {"image_edit.partial_image"}
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(events) - 1))
    assert len(events[:-1]) <= 2  # fewer where the job is quick; the service's tests see one
    for event in events:
        opened(base64.b64decode(event.b64_json))


def test_openai_names_the_field_that_is_wrong(client: openai.OpenAI, prompt: Path) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=prompt, prompt="", extra_body={"steps": 999})
    assert (caught.value.param, caught.value.code) == ("steps", "invalid-field")
    assert caught.value.type == "invalid_request_error"


def test_openai_lists_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_openais_asynchronous_client_does_the_same(service: Service, prompt: Path) -> None:
    async def edit() -> Any:
        url = f"{service.api.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            return await client.images.edit(image=prompt, prompt="", extra_body={"steps": 2})

    opened(decoded(asyncio.run(edit())))


def test_replicate_runs_a_model_on_an_open_file(service: Service, prompt: Path) -> None:
    client = replicate.Client(base_url=service.api.url, api_token=KEY)
    try:
        with prompt.open("rb") as file:
            sent = {"image": file, "num_outputs": 2, "steps": 2, "output_format": "webp"}
            pictures = client.run("imageprompt/tiny", input=sent)
        assert [opened(one.read()).format for one in pictures] == ["WEBP", "WEBP"]
    finally:
        client._client.close()


def test_hugging_face_makes_an_image_of_a_text(service: Service) -> None:
    client = InferenceClient(base_url=f"{service.api.url}/hf/tiny", token=KEY)
    image = client.text_to_image("a red star", num_inference_steps=2, width=96, height=64, seed=1)
    assert image.size == (96, 64)


@pytest.mark.parametrize("arguments", [{}, {"prompt": "a red star", "num_inference_steps": 2}])
def test_hugging_face_makes_an_image_of_an_image(
    service: Service, prompt: Path, arguments: dict[str, Any]
) -> None:
    """Without arguments the body is the file itself, with some it is JSON."""
    client = InferenceClient(base_url=f"{service.api.url}/hf/tiny", token=KEY)
    assert client.image_to_image(prompt, **arguments).size == (64, 64)
    assert client.image_to_image(prompt.read_bytes(), **arguments).size == (64, 64)


def test_hugging_face_hears_what_is_wrong(service: Service) -> None:
    client = InferenceClient(base_url=f"{service.api.url}/hf/tiny", token=KEY)
    with pytest.raises(HfHubHTTPError, match="steps"):
        client.text_to_image("a red star", num_inference_steps=999)
