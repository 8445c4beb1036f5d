"""A storm of generated hostile uploads, then hostile clients. `python -m tests.hostile 2000 60`.

The first number is that of uploads, the second one seconds (`tests/hostile_clients.py`).

Every case is a body of the corpus or a picture of it, damaged by chance: in its bytes, or in the
order, number and content of its chunks and segments. The seed makes it again.
"""

import functools
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
from redis import Redis

from service.cli.processes import RedisServer
from tests import corpus, picture_files
from tests.hostile_clients import besiege, resident_kib
from tests.running import KEEP, Running, start_api

ALLOWED = {202, 400, 413, 415, 422}
MORE = 0.3
"""How often a case has a second picture."""


@dataclass(frozen=True)
class Outcome:
    """How a storm ended. Memory in KiB, of the API process."""

    statuses: Counter[int]
    resident_before: int
    resident_after: int
    leftovers: int
    """Uploads in storage that no accepted job has."""


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, some cut out, some doubled."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        if not changed:
            break
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                del changed[place : place + chance.randint(1, 40)]
            case 2:
                changed[place:place] = changed[place : place + 40]
            case 3:
                del changed[place:]
    return bytes(changed)


@functools.cache
def _corpus() -> tuple[list[bytes], list[corpus.HostileBody]]:
    honest = [file.data for file in corpus.honest_files()]
    files = [*(file.data for file in corpus.hostile_files()), *honest, *honest]
    return files, corpus.hostile_bodies()


def body(chance: random.Random) -> tuple[str, bytes]:
    """Content type and body of one case."""
    files, bodies = _corpus()
    match chance.randrange(4):
        case 0:
            picked = chance.choice(bodies)
            return picked.content_type, picked.body
        case 1:
            picked = chance.choice(bodies)
            return picked.content_type, damaged(picked.body, chance)
        case 2:
            damage = chance.choice((damaged, picture_files.rebuilt))
            parts = [corpus.part("image", damage(chance.choice(files), chance), filename="a")]
            if chance.random() < MORE:
                field = chance.choice(("image", "control_image"))
                parts.append(corpus.part(field, chance.choice(files), filename="b"))
        case _:
            field = chance.choice(["steps", "width", "seed", "ip_scale", "image_weights", "\x00"])
            value = chance.randbytes(chance.randint(0, 40))
            parts = [corpus.part("image", chance.choice(files)), corpus.part(field, value)]
    return corpus.MULTIPART, b"".join(parts) + corpus.END


def storm(running: Running, redis: Redis, folder: Path, cases: int, seed: int = 0) -> Outcome:
    """Send the cases one after another."""
    chance = random.Random(seed)
    statuses: Counter[int] = Counter()
    before = 0
    with httpx.Client(base_url=running.url, timeout=60, limits=KEEP) as client:
        for number in range(cases):
            if number == cases // 4:
                before = resident_kib(running)  # by then every decoder has been at work
            kind, content = body(chance)
            answer = client.post("/generate", content=content, headers={"content-type": kind})
            statuses[answer.status_code] += 1
            assert answer.status_code in ALLOWED, (number, seed, answer.text)
    jobs = {name.decode().rpartition(":")[2] for name in redis.scan_iter("imageprompt:job:*")}
    stored = {path.name for path in (folder / "uploads").glob("*")}
    assert len(jobs) == statuses[202]
    return Outcome(statuses, before, resident_kib(running), len(stored - jobs))


def main() -> None:
    """Run one storm and one siege against an API and a Redis of their own."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder / "redis")
        server.start()
        try:
            settings = {
                "redis_url": f"redis://127.0.0.1:{server.port}/0",
                "storage_url": (folder / "storage").as_uri(),
                "max_queued_jobs": 10**6,
            }
            with start_api(settings, folder / "log").wait("/healthz/live") as running:
                redis = Redis(port=server.port)
                outcome = storm(running, redis, folder / "storage", cases)
                siege = besiege(running, seconds=seconds)
                redis.close()
        finally:
            server.stop()
    mebibytes = [kib / 1024 for kib in (outcome.resident_before, outcome.resident_after)]
    lines = [
        f"{cases} cases: {dict(sorted(outcome.statuses.items()))}",
        "resident {:.1f} MiB after a quarter, {:.1f} MiB at the end".format(*mebibytes),
        f"uploads left without a job: {outcome.leftovers}",
        *siege.lines(),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
