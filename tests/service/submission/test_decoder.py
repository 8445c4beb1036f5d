"""Uploads are decoded in processes that no file, and no signal, can turn against the API."""

import asyncio
import os
import signal
import struct
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

import pytest
from PIL import Image

from service.core.errors import InvalidImage, UnsupportedMedia
from service.core.settings import ROOT
from service.core.upload_types import Picture, UploadKind
from service.submission.decoder import AT_ONCE, LARGE_PIXELS, UploadDecoder
from tests import corpus
from tests import picture_files as files

MAX_PIXELS = 40_000_000
SMALL = corpus.saved(corpus.picture(), "PNG")


def children() -> list[int]:
    """The processes that this one has started and not waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


async def decode(decoder: UploadDecoder, data: bytes, owner: str = "one") -> Picture:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        async with decoder.decode(file, UploadKind.PICTURE, owner=owner) as decoded:
            assert _size(decoded.file) > 0
            return decoded.picture


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def run(test: Callable[[UploadDecoder], Awaitable[None]], **options: float) -> None:
    """Run a test with a decoder; afterwards none of its processes is left."""
    before = children()

    async def whole() -> None:
        decoder = UploadDecoder(max_pixels=MAX_PIXELS, **options)
        try:
            await test(decoder)
        finally:
            decoder.close()
        assert children() == before

    asyncio.run(whole())


def test_one_process_decodes_one_upload_after_another() -> None:
    async def test(decoder: UploadDecoder) -> None:
        before = set(children())
        for data in (SMALL, corpus.saved(corpus.picture(), "JPEG"), SMALL):
            assert (await decode(decoder, data)).width == corpus.SIZE[0]
        with pytest.raises(UnsupportedMedia, match="GIF"):
            await decode(decoder, b"GIF89a" + bytes(99))
        with pytest.raises(InvalidImage, match="damaged"):
            await decode(decoder, SMALL[:-30])
        await decode(decoder, SMALL)
        assert len(set(children()) - before) == 1

    run(test)


def test_it_works_where_only_an_import_hook_finds_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As for an editable installation that is started in a folder of somebody's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p and Path(p).resolve() != ROOT])

    async def test(decoder: UploadDecoder) -> None:
        assert (await decode(decoder, SMALL)).width == corpus.SIZE[0]

    run(test)


def test_uploads_that_come_together_are_decoded_by_a_few_processes() -> None:
    async def test(decoder: UploadDecoder) -> None:
        before = set(children())
        pictures = await asyncio.gather(*[decode(decoder, SMALL) for _ in range(20)])
        assert len(set(pictures)) == 1
        assert len(set(children()) - before) <= AT_ONCE

    run(test)


def test_an_idle_process_is_ended() -> None:
    async def test(decoder: UploadDecoder) -> None:
        before = children()
        await decode(decoder, SMALL)
        async with asyncio.timeout(30):
            while children() != before:  # noqa: ASYNC110 - another process is watched
                await asyncio.sleep(0.02)
        assert (await decode(decoder, SMALL)).width == corpus.SIZE[0]

    run(test, idle_seconds=0.1)


@pytest.mark.parametrize("name", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_was_killed_is_replaced(name: signal.Signals) -> None:
    async def test(decoder: UploadDecoder) -> None:
        before = set(children())
        await decode(decoder, SMALL)
        (pid,) = set(children()) - before
        os.kill(pid, name)
        if name == signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)
        assert (await decode(decoder, SMALL)).width == corpus.SIZE[0]
        assert pid not in children()

    run(test)


def test_a_process_that_is_killed_at_work_costs_no_upload() -> None:
    async def test(decoder: UploadDecoder) -> None:
        before = set(children())
        await decode(decoder, SMALL)
        (pid,) = set(children()) - before
        # Stopped, it takes the request and cannot end before it is killed.
        os.kill(pid, signal.SIGSTOP)
        working = asyncio.create_task(decode(decoder, SMALL))
        await asyncio.sleep(0.2)
        assert not working.done()
        os.kill(pid, signal.SIGKILL)
        assert (await working).width == corpus.SIZE[0]
        assert pid not in children()

    run(test)


def test_a_client_that_hangs_up_leaves_no_process_at_work() -> None:
    large = corpus.saved(Image.new("RGBA", (4000, 4000), (1, 2, 3, 4)), "PNG")

    async def test(decoder: UploadDecoder) -> None:
        before = set(children())
        working = asyncio.create_task(decode(decoder, large))
        await decode(decoder, SMALL)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert len(set(children()) - before) <= 1
        assert (await decode(decoder, SMALL)).width == corpus.SIZE[0]

    run(test)


def test_small_pictures_do_not_wait_for_large_ones() -> None:
    large = corpus.saved(Image.new("RGBA", (3000, 3000), (1, 2, 3, 4)), "PNG")
    done: list[int] = []

    async def one(decoder: UploadDecoder, data: bytes) -> None:
        done.append((await decode(decoder, data)).width)

    async def test(decoder: UploadDecoder) -> None:
        await asyncio.gather(*[one(decoder, data) for data in (large, large, large, SMALL, SMALL)])
        assert done.index(corpus.SIZE[0]) < 2
        assert len(done) == 5

    run(test)


def test_one_owners_large_pictures_do_not_hold_back_anothers() -> None:
    large = corpus.saved(Image.new("RGBA", (2100, 2100), (1, 2, 3, 4)), "PNG")
    done: list[str] = []

    async def one(decoder: UploadDecoder, owner: str) -> None:
        await decode(decoder, large, owner)
        done.append(owner)

    async def test(decoder: UploadDecoder) -> None:
        owners = ["many"] * 6 + ["other"]
        await asyncio.gather(*[one(decoder, owner) for owner in owners])
        assert done.index("other") <= 3

    run(test)


def test_a_file_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work has no end here, so that it outlasts the limit on any machine."""
    monkeypatch.setattr("service.submission.decoder.MODULE", "tests.impatient_decoder")
    large = corpus.saved(Image.new("L", (2100, 2100), 7), "JPEG")

    async def test(decoder: UploadDecoder) -> None:
        with pytest.raises(InvalidImage, match="too long"):
            await decode(decoder, large)
        assert (await decode(decoder, SMALL)).width == corpus.SIZE[0]

    run(test)


def test_a_file_that_takes_too_much_memory_is_refused() -> None:
    """libheif and libavif make room for what a file claims before anything shows that it lies."""
    heic = bytearray(files.heic(Image.new("RGB", (64, 64))))
    at = heic.index(b"ispe") + 8
    heic[at : at + 8] = struct.pack(">II", 6000, 6000)

    async def test(decoder: UploadDecoder) -> None:
        with pytest.raises(InvalidImage):
            await decode(decoder, bytes(heic))
        assert (await decode(decoder, SMALL)).width == corpus.SIZE[0]

    run(test)


def test_a_process_holds_its_memory_limit_and_not_the_services_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGEPROMPT_REDIS_URL", "redis://:secret@127.0.0.1/0")

    async def test(decoder: UploadDecoder) -> None:
        before = set(children())
        await decode(decoder, SMALL)
        (pid,) = set(children()) - before
        process = Path(f"/proc/{pid}")
        limits = {
            line[:26].strip(): line[26:47].strip()
            for line in process.joinpath("limits").read_text().splitlines()
        }
        assert 500 * 2**20 < int(limits["Max address space"]) < 1200 * 2**20
        assert limits["Max core file size"] == "0"
        assert int(limits["Max cpu time"]) < 30
        assert b"secret" not in process.joinpath("environ").read_bytes()
        mapped = process.joinpath("maps").read_text()
        assert not any(name in mapped for name in ("libtorch", "pydantic", "uvloop", "obstore"))

    run(test)


def test_a_large_picture_leaves_no_memory_behind() -> None:
    side = 4000
    data = corpus.saved(Image.new("RGBA", (side, side), (9,) * 4), "PNG")
    assert side**2 > LARGE_PIXELS

    async def test(decoder: UploadDecoder) -> None:
        before = set(children())
        for _ in range(2):
            await decode(decoder, data)
        held = sum(_resident_bytes(pid) for pid in set(children()) - before)
        assert held < 64 * 2**20

    run(test)


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1]) * 1024
