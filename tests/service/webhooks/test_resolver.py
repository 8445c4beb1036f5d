"""Names are resolved in parallel, so that a silent name server delays no other name."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from service.webhooks import url_policy
from service.webhooks.url_policy import (
    MAX_LOOKUPS,
    MAX_UNKNOWN_LOOKUPS,
    LookupFailed,
    Resolver,
    TooManyLookups,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was looked up; names that begin with `slow` are not answered before the test ends."""
    names: list[str] = []
    over = threading.Event()

    def answer(host: str, *_more: object, **_options: object) -> object:
        names.append(host)
        if host.startswith("slow"):
            over.wait(300)
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    yield names
    over.set()


def hanging(
    resolver: Resolver, names: list[str], owner: str = "slow"
) -> list[asyncio.Task[list[str]]]:
    return [asyncio.create_task(resolver.addresses(name, owner=owner)) for name in names]


async def drop(tasks: list[asyncio.Task[list[str]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_slow_names_hold_up_nobody_and_leave_the_pool_of_the_loop_alone(asked: list[str]) -> None:
    async def run() -> None:
        resolver = Resolver()
        slow = hanging(resolver, [f"slow-{number}" for number in range(MAX_UNKNOWN_LOOKUPS // 2)])
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            assert await resolver.addresses("quick") == ["8.8.8.8"]
            await asyncio.to_thread(int)
        assert not any(task.done() for task in slow[:1])
        await drop(slow)

    asyncio.run(run())


def test_one_name_has_one_thread_also_when_nobody_waits_any_more(asked: list[str]) -> None:
    async def run() -> None:
        resolver = Resolver()
        for _ in range(3):
            slow = hanging(resolver, ["slow"] * 5)
            await asyncio.sleep(0)
            await drop(slow)

    asyncio.run(run())
    assert asked == ["slow"]


def test_names_that_were_resolved_before_have_capacity_of_their_own(asked: list[str]) -> None:
    async def run() -> None:
        resolver = Resolver()
        await resolver.addresses("known")
        slow = []
        for number in range(MAX_UNKNOWN_LOOKUPS):
            slow += hanging(resolver, [f"slow-{number}"], owner=f"owner-{number}")
        await asyncio.sleep(0)
        with pytest.raises(TooManyLookups):
            await resolver.addresses("unknown", owner="another")
        assert await resolver.addresses("known") == ["8.8.8.8"]
        await drop(slow)

    asyncio.run(run())
    assert MAX_UNKNOWN_LOOKUPS < MAX_LOOKUPS


def test_one_owner_s_slow_names_leave_lookups_to_the_others(asked: list[str]) -> None:
    async def run() -> None:
        resolver = Resolver()
        half = MAX_UNKNOWN_LOOKUPS // 2
        slow = hanging(resolver, [f"slow-{number}" for number in range(half)])
        await asyncio.sleep(0)
        with pytest.raises(TooManyLookups):
            await resolver.addresses("one-more", owner="slow")
        assert await resolver.addresses("unknown", owner="another") == ["8.8.8.8"]
        await drop(slow)

    asyncio.run(run())


def test_who_waits_is_told_in_time(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_policy, "LOOKUP_TIMEOUT_SECONDS", 0.05)

    async def run() -> None:
        with pytest.raises(LookupFailed):
            await Resolver().addresses("slow")

    asyncio.run(run())
