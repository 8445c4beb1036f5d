"""Permits go round the owners who wait, and none is lost."""

import asyncio

from service.limits import FairSemaphore


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(100):
        await asyncio.sleep(0)


def test_owners_are_served_in_turn() -> None:
    async def run() -> list[str]:
        semaphore, served = FairSemaphore(1), []

        async def use(owner: str) -> None:
            async with semaphore.hold(owner):
                served.append(owner)
                await asyncio.sleep(0)

        await asyncio.gather(*[use(owner) for owner in "aaaabbc"])
        return served

    assert "".join(asyncio.run(run())) == "aabcaba"


def test_a_permit_survives_those_who_stop_waiting() -> None:
    async def run() -> None:
        semaphore = FairSemaphore(2)
        held = [asyncio.Event() for _ in range(6)]
        go = [asyncio.Event() for _ in range(6)]

        async def use(number: int) -> None:
            async with semaphore.hold(str(number % 2)):
                held[number].set()
                await go[number].wait()

        tasks = [asyncio.create_task(use(number)) for number in range(6)]
        await settle()
        assert [event.is_set() for event in held] == [True, True, False, False, False, False]
        tasks[2].cancel()
        go[0].set()
        await asyncio.sleep(0)  # a permit is on its way to a waiter
        tasks[3].cancel()
        await settle()
        assert sum(event.is_set() for event in held) == 3
        for event in go:
            event.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(10):
            async with semaphore.hold("x"), semaphore.hold("y"):
                await settle()

    asyncio.run(run())
