"""Bodies are read the same however the network cuts them up, as a form and as JSON."""

import asyncio
import base64
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from service.core.errors import Busy, InvalidField, MalformedBody, ServiceError, TooLarge
from service.core.param_types import StoredUpload
from service.core.schema import Files, OnePerFile
from service.submission import form as form_module
from service.submission.body import BodyBudget, BodyLimits, read_body
from service.submission.form import IN_MEMORY_BYTES, Form
from tests import corpus


class Small(BaseModel):
    """A declaration with one field of each kind."""

    image: Annotated[tuple[StoredUpload, ...], Files(at_most=2)] = ()
    sketch: Annotated[tuple[StoredUpload, ...], Files()] = ()
    weights: Annotated[tuple[float, ...], OnePerFile("image", default=1.0)]
    prompt: str = ""
    steps: Annotated[int, Field(ge=1)] = 1


LIMITS = BodyLimits(max_body_bytes=10_000_000, max_file_bytes=1_000_000, timeout_seconds=60)
JSON = {"content-type": "application/json; charset=utf-8"}
FORM = {"content-type": corpus.MULTIPART}


def read(
    body: bytes,
    cuts: list[int],
    limits: BodyLimits = LIMITS,
    headers: dict[str, str] = FORM,
    *,
    inside: str | None = None,
) -> Form:
    """Read a body that comes in pieces."""
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(places):
            yield body[start:end]

    return asyncio.run(read_body(Small, headers, pieces(), limits, inside=inside))


def read_json(content: object, cuts: list[int] = [], limits: BodyLimits = LIMITS) -> Form:  # noqa: B006
    """Read a JSON body."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read(body, cuts, limits, JSON)


def uri(data: bytes, kind: str = "image/png") -> str:
    """A file as a `data:` URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def contents(form: Form, name: str) -> list[bytes]:
    """The bytes of the files of a field."""
    return [upload.content.read() for upload in form.files[name]]


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(max_size=60),
    data=st.binary(max_size=400).filter(lambda data: b"--corpus" not in data),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_texts_and_files_come_through_unchanged(text: str, data: bytes, cuts: list[int]) -> None:
    body = (
        corpus.part("prompt", text.encode(), filename="a text with a name")
        + corpus.part("image", data)
        + corpus.part("image", data * 2, filename="../../x", kind="text/html")
        + corpus.END
        + b"and an epilogue"
    )
    with read(body, cuts) as form:
        assert form.values == {"prompt": text}
        assert contents(form, "image") == [data, data * 2]
        assert [upload.size_bytes for upload in form.files["image"]] == [len(data), 2 * len(data)]
        files = [upload.content for upload in form.files["image"]]
    assert all(file.closed for file in files)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_fields_may_be_in_an_object_within_the_body(cuts: list[int]) -> None:
    """Files keep their order, whichever of them are URLs."""
    link = "https://pictures.example/a.png"
    inner = {"image": [link, uri(b"one")], "prompt": 'a {"star"}, [red]', "weights": [1, 2]}
    body = json.dumps({"steps": 3, "input": inner}).encode()
    with read(body, cuts, headers=JSON, inside="input") as form:
        assert form.values == {"steps": 3, "prompt": inner["prompt"], "weights": [1, 2]}
        assert [upload.is_link for upload in form.files["image"]] == [True, False]
        assert contents(form, "image") == [link.encode(), b"one"]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"input": 3}, "input"),
        ({"input": {"steps": 1}, "steps": 2}, "steps"),
        ({"input": {"image": [uri(b"a"), "https://a.example", "https://b.example"]}}, "image"),
        ({"input": {"image": "file:///etc/passwd"}}, "image"),
        ({"other": {"image": uri(b"a")}}, "other"),
    ],
)
def test_a_wrong_object_within_the_body_is_named(content: object, field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read(json.dumps(content).encode(), [], headers=JSON, inside="input")
    assert caught.value.errors[0].field == field


def test_a_text_in_the_place_of_a_file_may_be_its_url() -> None:
    url = b"https://pictures.example/a.png"
    body = corpus.part("image", url) + corpus.part("image", url, filename="url.txt") + corpus.END
    with read(body, []) as form:
        assert [upload.is_link for upload in form.files["image"]] == [True, False]


def test_limits_hold_at_the_byte() -> None:
    body = corpus.part("image", bytes(1000), filename="a") + corpus.END

    def limits(body_bytes: int, file_bytes: int) -> BodyLimits:
        return BodyLimits(body_bytes, file_bytes, 60)

    with read(body, [], limits(len(body), 1000)) as form:
        assert form.size_bytes == len(body)
    with pytest.raises(TooLarge, match="image"):
        read(body, [], limits(len(body), 999))
    with pytest.raises(TooLarge, match="body"):
        read(body, [], limits(len(body) - 1, 1000))
    body = json.dumps({"image": uri(bytes(1000))}).encode()
    with read_json(body, [], limits(len(body), 1000)) as form:
        assert contents(form, "image") == [bytes(1000)]
    with pytest.raises(TooLarge, match="image"):
        read_json(body, [], limits(len(body), 999))
    with pytest.raises(TooLarge, match="body"):
        read_json(body, [], limits(len(body) - 1, 1000))


def _endless_form() -> Iterator[bytes]:
    return iter(corpus.endless_body(50_000_000))


def _endless_json() -> Iterator[bytes]:
    yield b'{"image": "data:image/png;base64,'
    for _ in range(700):
        yield b"A" * 65536


@pytest.mark.parametrize(
    ("headers", "endless"), [(FORM, _endless_form), (JSON, _endless_json)], ids=["form", "json"]
)
def test_a_body_over_a_limit_is_not_read_further(headers: dict[str, str], endless: Any) -> None:
    pulled = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal pulled
        for piece in endless():
            pulled += len(piece)
            yield piece

    with pytest.raises(TooLarge):
        asyncio.run(read_body(Small, headers, counted(), LIMITS))
    assert pulled < LIMITS.max_file_bytes * 4 / 3 + 3 * 64 * 1024


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(max_size=60, alphabet=st.characters(exclude_categories=["Cs"])),
    data=st.binary(max_size=400),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
    layout=st.sampled_from([{}, {"indent": 2}, {"ensure_ascii": False}]),
    slash=st.sampled_from(["/", "\\/"]),  # PHP writes the second
)
def test_json_gives_what_a_form_gives(
    text: str, data: bytes, cuts: list[int], layout: dict[str, Any], slash: str
) -> None:
    content = {
        "prompt": text,
        "image": [uri(data), uri(data * 2, "")],
        "steps": 7,
        "weights": [1, 0.5],
    }
    body = json.dumps(content, **layout).replace("/", slash)
    with read_json(body.encode(), cuts) as form:
        assert form.values == {"prompt": text, "steps": 7, "weights": [1, 0.5]}
        assert contents(form, "image") == [data, data * 2]
        parsed = dict(form.parse())
    assert parsed == {"prompt": text, "steps": 7, "weights": (1, 0.5)}


def test_json_is_lenient_where_nothing_is_ambiguous() -> None:
    with read_json({"weights": "1, 0.5", "prompt": None, "sketch": None}) as form:
        assert dict(form.parse()) == {"weights": (1, 0.5), "prompt": "", "steps": 1}
        assert form.files == {}
    with read_json({"prompt": "data: a chart, data:image/png;base64"}) as form:
        assert form.values["prompt"] == "data: a chart, data:image/png;base64"
    with read_json({"sketch": "data:;base64,QUI"}) as form:
        assert contents(form, "sketch") == [b"AB"], "padding may be left out"


@pytest.mark.parametrize(
    ("content", "error", "named"),
    [
        ([], MalformedBody, "body"),
        (b"{", MalformedBody, "body"),
        (b'{"image": "data:image/png;base64,AAAA', MalformedBody, "body"),
        (b'{"prompt": NaN}', MalformedBody, "body"),
        (b"[" * 100_000, MalformedBody, "body"),
        (b'{"prompt": "\xff"}', MalformedBody, "body"),
        (b'{"prompt": 1, "prompt": 2}', InvalidField, "prompt"),
        ({"prompt": "\ud800"}, MalformedBody, "Unicode"),
        ({"\ud800": 1}, MalformedBody, "Unicode"),
        ({"\ud800": uri(b"x")}, MalformedBody, "Unicode"),
        ({"\udfff" * 200: "x"}, MalformedBody, "Unicode"),
        (b'{"\\ud800": 1, "\\ud800": 2}', MalformedBody, "Unicode"),
        ({"weights": [{"a": ["\udc00"]}]}, MalformedBody, "Unicode"),
        ({"weights": json.loads("[" * 500 + "]" * 500)}, MalformedBody, "more than 64 deep"),
        (b'{"weights": [' + b"1," * 120_000 + b"1]}", MalformedBody, "far more values"),
        (b'{"weights": [' + b"[]," * 80_000 + b"1]}", MalformedBody, "far more values"),
        ({"prompts": "x"}, InvalidField, "prompts"),
        ({"prompt": uri(b"x")}, InvalidField, "prompt"),
        ({"image": "iVBORw0KGgo="}, InvalidField, "image"),
        ({"image": "ftp://example.org/a.png"}, InvalidField, "image"),
        ({"image": {"a": uri(b"x")}}, InvalidField, "image"),
        ({"image": 5}, InvalidField, "image"),
        ({"image": [uri(b"x")] * 3}, InvalidField, "image"),
        ({"sketch": [uri(b"x")] * 2}, InvalidField, "sketch"),
        ({"image": "data:image/png;base64,AA=A"}, InvalidField, "image"),
        ({"image": "data:image/png;base64,A\tAA"}, InvalidField, "image"),
        ({"prompt": "x" * 300_000}, TooLarge, "without its files"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("cuts", [[], [5, 17, 31, 32, 33]], ids=["whole", "cut"])
def test_what_is_wrong_in_json_is_named(
    content: object, error: type[ServiceError], named: str, cuts: list[int]
) -> None:
    with pytest.raises(error, match=named):
        read_json(content, cuts)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": "7"}, "steps"),
        ({"steps": 0, "prompt": 5}, "prompt.*steps"),
        ({"steps": True}, "steps"),
        ({"weights": ["x"]}, "weights"),
        ({"weights": "x"}, "weights"),
    ],
    ids=str,
)
def test_a_wrong_value_in_json_is_named(values: dict[str, object], named: str) -> None:
    with read_json(values) as form, pytest.raises(ServiceError, match=named):
        form.parse()


def test_a_large_file_is_written_to_disk_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs must not stop the event loop, and small files need no thread."""
    threads = []
    flush = form_module.FileSink.flush

    def watched(sink: form_module.FileSink) -> None:
        threads.append(threading.current_thread())
        flush(sink)

    monkeypatch.setattr(form_module.FileSink, "flush", watched)
    small, large = bytes(range(256)) * 100, bytes(range(256)) * (IN_MEMORY_BYTES // 256 + 999)
    for headers, body in (
        (FORM, corpus.part("image", small) + corpus.part("image", large) + corpus.END),
        (JSON, json.dumps({"image": [uri(small), uri(large)]}).encode()),
    ):
        cuts = list(range(0, len(body), 64 * 1024))
        with read(body, cuts, headers=headers) as form:
            assert contents(form, "image") == [small, large]
    assert len(threads) == 4, "one full buffer and the rest, of each large file"
    assert threading.main_thread() not in threads


def test_bodies_are_refused_where_others_use_up_the_budget() -> None:
    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(10)

    async def length(stream: AsyncIterator[bytes]) -> int:
        return sum([len(chunk) async for chunk in stream])

    async def run() -> None:
        budget = BodyBudget(100)
        with budget.count("a") as first, budget.count("b") as second:
            assert await length(first(chunks(6))) == 60
            with pytest.raises(Busy):
                await length(second(chunks(5)))
        with budget.count("a") as third:
            assert await length(third(chunks(10))) == 100

    asyncio.run(run())


def test_bodies_of_one_owner_leave_half_of_the_budget_to_the_others() -> None:
    async def send(budget: BodyBudget, owner: str, gate: asyncio.Event, counts: list[int]) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield bytes(10)
                await asyncio.sleep(0)

        with budget.count(owner) as counted:
            try:
                async for chunk in counted(chunks()):
                    counts += [len(chunk)]
            except Busy:
                await gate.wait()

    async def run() -> None:
        budget, gate = BodyBudget(100), asyncio.Event()
        greedy: list[int] = []
        tasks = [asyncio.create_task(send(budget, "greedy", gate, greedy)) for _ in range(4)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert sum(greedy) == 50
        other: list[int] = []
        tasks.append(asyncio.create_task(send(budget, "other", gate, other)))
        for _ in range(100):
            await asyncio.sleep(0)
        assert sum(other) == 50
        gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
