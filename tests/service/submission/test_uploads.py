"""POST /generate by its bytes: hostile, endless and damaged ones, and clients that hang up."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import corpus
from tests.running import Running, until
from tests.service.conftest import PNG, Api, problem


@pytest.mark.parametrize("file", corpus.hostile_files(), ids=lambda file: file.name)
def test_a_hostile_file_leaves_nothing(api: Api, file: corpus.HostileFile) -> None:
    before = api.leftovers()
    files = [
        ("image", ("fine.png", PNG, "image/png")),
        ("image", (file.filename, file.data, file.content_type)),
    ]
    body = problem(api.post(files=files), file.status)
    assert body["errors"][0]["field"] == "image[1]"
    assert api.leftovers() == before


@pytest.mark.parametrize("sent", corpus.hostile_bodies(), ids=lambda sent: sent.name)
def test_a_hostile_body_leaves_nothing(api: Api, sent: corpus.HostileBody) -> None:
    before = api.leftovers()
    headers = {"content-type": sent.content_type} if sent.content_type else {}
    problem(api.client.post("/generate", content=sent.body, headers=headers), sent.status)
    assert api.leftovers() == before


@pytest.mark.parametrize("file", corpus.honest_files(), ids=lambda file: file.name)
def test_an_odd_but_honest_file_is_taken(api: Api, file: corpus.HonestFile) -> None:
    files = [("image", ("x.exe", file.data, file.content_type or None))]
    answer = api.post(files=files)
    assert answer.status_code == 202, answer.text
    shown = answer.json()["input"]["image"][0]
    assert (shown["width"], shown["height"]) == file.size


def peak_kib(api: Api) -> int:
    """Largest memory that the API process has had resident."""
    status = Path(f"/proc/{api.running.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])


@pytest.mark.parametrize("announced", [True, False])
def test_an_endless_file_is_refused_and_memory_stays_flat(api: Api, announced: bool) -> None:  # noqa: FBT001 - a parameter of the test
    before, peak = api.leftovers(), peak_kib(api)
    total = 200 * 2**20
    headers = {"content-type": corpus.MULTIPART}
    if announced:
        headers["content-length"] = str(sum(map(len, corpus.endless_body(total))))
    try:
        answer = api.client.post("/generate", content=corpus.endless_body(total), headers=headers)
    except httpx.TransportError:
        pytest.fail("the connection was cut before the answer could be read")
    problem(answer, 413)
    assert peak_kib(api) - peak < 40 * 1024
    assert api.leftovers() == before


def test_a_body_over_the_limit_made_of_allowed_files_is_refused(api: Api) -> None:
    image = corpus.part("image", b"\x89PNG\r\n\x1a\n" + bytes(19 * 2**20), filename="a")
    body = image * 6 + corpus.END
    answer = api.client.post(
        "/generate", content=iter([body]), headers={"content-type": corpus.MULTIPART}
    )
    assert "104857600" in str(problem(answer, 413)["detail"])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.integers(0, 700), flips=st.lists(st.integers(0, 700), max_size=5))
def test_damaged_bodies_are_never_a_fault(api: Api, cut: int, flips: list[int]) -> None:
    body = bytearray(corpus.part("image", PNG, filename="a") + corpus.END)
    for place in flips:
        body[place % len(body)] ^= 0x55
    content = bytes(body[: len(body) - cut % len(body)])
    answer = api.client.post(
        "/generate", content=content, headers={"content-type": corpus.MULTIPART}
    )
    assert answer.status_code in (202, 400, 415, 422)


def test_a_body_that_does_not_come_to_its_end_is_not_waited_for(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> None:
    settings = {"redis_url": redis_url, "storage_url": storage_url}
    with make_api(**settings, body_timeout_seconds=0.5) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        head = (
            "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            f"Content-Type: {corpus.MULTIPART}\r\n\r\n--{corpus.BOUNDARY}\r\n"
        )
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(head.encode())
            answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_client_that_hangs_up_while_sending_leaves_nothing(api: Api) -> None:
    before = api.leftovers()

    def stop_halfway() -> None:
        def pieces():  # type: ignore[no-untyped-def]
            yield corpus.part("image", PNG, filename="a")
            raise ConnectionAbortedError

        with pytest.raises(ConnectionAbortedError):
            httpx.post(
                f"{api.running.url}/generate",
                content=pieces(),
                headers={"content-type": corpus.MULTIPART},
            )

    stop_halfway()
    assert api.client.get("/healthz/live").status_code == 200
    assert api.leftovers() == before


def test_a_map_and_an_image_prompt_are_read_each_in_its_way(api: Api) -> None:
    """White lines on a transparent background: white on black as a map, white on white as a
    picture."""
    image = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    image.putpixel((0, 0), (255, 255, 255, 255))
    lines = corpus.saved(image, "PNG")
    answer = api.post(files=[("image", ("a", lines)), ("control_image", ("b", lines))])
    job_id = answer.json()["id"]
    found = {}
    for path in (api.folder / "uploads" / job_id).iterdir():
        stored = Image.open(path).convert("RGB")
        found[path.name] = (stored.getpixel((0, 0)), stored.getpixel((9, 9)))
    white, black = (255,) * 3, (0,) * 3
    assert found == {"image-0.png": (white, white), "control-image-0.png": (white, black)}


def test_a_file_that_is_fit_is_stored_as_it_came(api: Api) -> None:
    sent = corpus.saved(Image.effect_noise((900, 900), 80).convert("RGB"), "JPEG", quality=95)
    assert len(sent) > 512 * 1024, "it went to disk while it was received"
    job_id = api.post(files=[("image", ("a", sent))]).json()["id"]
    (path,) = (api.folder / "uploads" / job_id).iterdir()
    assert path.name == "image-0.jpeg"
    assert path.read_bytes() == sent


def test_uploads_outlive_a_decoder_process_that_is_killed(api: Api) -> None:
    assert api.post().status_code == 202
    children = Path(f"/proc/{api.running.process.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert api.post().status_code == 202


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGKILL])
def test_no_decoder_process_outlives_its_api(
    make_api: Callable[..., Running], redis_url: str, storage_url: str, name: signal.Signals
) -> None:
    with make_api(redis_url=redis_url, storage_url=storage_url) as running:
        files = {"image": ("a.png", PNG)}
        assert httpx.post(f"{running.url}/generate", files=files, timeout=60).status_code == 202
        tasks = Path(f"/proc/{running.process.pid}/task").glob("*/children")
        pids = [int(pid) for file in tasks for pid in file.read_text().split()]
        assert pids
        os.kill(running.process.pid, name)
        until(lambda: not any(_lives(pid) for pid in pids), what="the end of the decoders")


def _lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
