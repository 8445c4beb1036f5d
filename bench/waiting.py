"""`python -m bench.waiting`: what a long queue costs those who poll, list and post.

Two services side by side, one with ten jobs waiting and one with many. A job is posted to each, and
its record and its places in Redis are copied under other ids, since posting so many would take
long. Each round asks both in turn. Writes `waiting.md` into `--out`.
"""

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import httpx
from redis import Redis
from rq.job import Job

from bench.http import servers
from service.core import redis_keys
from service.core.queue import list_key
from service.core.settings import ROOT, Settings

PICTURE: Final = ROOT / "examples" / "red-star.png"
FEW: Final = 10
QUEUE: Final = list_key(Settings().queue)
CHUNK: Final = 1_000


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asked = {}
        for waiting in (FEW, options.waiting):
            server, redis = stack.enter_context(servers.ours(folder / str(waiting)))
            client = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
            first = _post(client)
            with Redis.from_url(redis.url) as connection:
                copy(connection, first, waiting - 1)
                middle = bytes(connection.lindex(QUEUE, waiting // 2) or b"").decode()
            asked[waiting] = _questions(client, first, middle)
        seconds: dict[str, dict[int, list[float]]] = {}
        for _ in range(options.rounds):
            for waiting, questions in asked.items():
                for name, question in questions.items():
                    began = time.perf_counter()
                    question()
                    took = time.perf_counter() - began
                    seconds.setdefault(name, {}).setdefault(waiting, []).append(took)
    options.out.mkdir(parents=True, exist_ok=True)
    report = _report(seconds, options.waiting, options.rounds)
    (options.out / "waiting.md").write_text(report)
    print(report)


def copy(redis: Redis, job_id: str, count: int) -> None:
    """Let `count` more jobs wait that are like this one in everything but their id."""
    names = [redis_keys.job(job_id), Job.key_for(job_id), redis_keys.events(job_id)]
    records = {name: redis.dump(name) or b"" for name in names}
    sets = redis.scan_iter(f"{redis_keys.PREFIX}*", _type="zset")
    places = {key: score for key in sets if (score := redis.zscore(key, job_id)) is not None}
    for start in range(0, count, CHUNK):
        with redis.pipeline(transaction=False) as pipe:
            ids = [str(uuid.uuid4()) for _ in range(min(CHUNK, count - start))]
            for new in ids:
                for name, record in records.items():
                    pipe.restore(name.replace(job_id, new), 0, record)
            for key, score in places.items():
                pipe.zadd(key, {new: score + number / 1e6 for number, new in enumerate(ids)})
            pipe.rpush(QUEUE, *ids)
            pipe.execute()


def _post(client: httpx.Client) -> str:
    answer = client.post("/generate", files={"image": PICTURE.read_bytes()}, data={"seed": "1"})
    return str(answer.raise_for_status().json()["id"])


def _questions(client: httpx.Client, first: str, middle: str) -> dict[str, Callable[[], object]]:
    def get(path: str) -> Callable[[], object]:
        return lambda: client.get(path).raise_for_status()

    return {
        "poll of the first": get(f"/jobs/{first}"),
        "poll in the middle of the queue": get(f"/jobs/{middle}"),
        f"list of {FEW}": get(f"/jobs?limit={FEW}"),
        "post": lambda: _post(client),
        "metrics": get("/metrics"),
    }


def _report(seconds: Mapping[str, Mapping[int, list[float]]], waiting: int, rounds: int) -> str:
    lines = [
        f"# {waiting:,} jobs waiting against {FEW} (medians of {rounds} rounds, side by side)",
        "",
        f"| request | time with {waiting:,} waiting / with {FEW} |",
        "|---|---|",
    ]
    for name, by_waiting in seconds.items():
        few, many = (statistics.median(by_waiting[count]) for count in (FEW, waiting))
        lines.append(f"| {name} | {many / few:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
