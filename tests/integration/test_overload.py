"""More requests than the worker can do: some are refused, all that were accepted are done.

`make overload` does the same for ten minutes and holds the times to what is promised.
"""

import asyncio
from pathlib import Path

from tests.faults.crowd import Crowd
from tests.faults.overload import opened, overload, settled
from tests.running import redis_client

REQUESTS_PER_SECOND = 8
"""Twice what the sleeping worker can do."""
SECONDS = 5
WAITING = 4
"""So few that they are there within seconds, beside the worker's eight."""


def test_accepted_jobs_all_finish_and_the_others_are_told_when_to_come_back(tmp_path: Path) -> None:
    with opened(tmp_path, WAITING) as place, redis_client(place.redis.url) as redis:
        crowd = Crowd(place.service.api.url, redis)
        asyncio.run(overload(place, crowd, REQUESTS_PER_SECOND, SECONDS))
        assert settled(place, crowd)
    assert set(crowd.ends()) == {"succeeded"}
    assert crowd.refused
    assert {one.status for one in crowd.refused} == {503}
    assert all(one.retry_after for one in crowd.refused)
