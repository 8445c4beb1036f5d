"""A storm of hostile uploads, then hostile clients. `python -m tests.hostile 8000 1200`.

The first number is that of uploads, the second one seconds (`tests/hostile_clients.py`). The report
goes to out/hostile.md; exit status 1 where a promise is broken.

A case is a body or picture of the corpus, damaged by chance in its bytes or in the order, number
and content of its pieces, or one made by the grammar of its format (`tests/hostile_grammar.py`). It
is sent with a length or in chunks. The seed makes it again.
"""

import functools
import os
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
from redis import Redis

from service.cli.processes import RedisServer
from tests import corpus, hostile_grammar, picture_files
from tests.hostile_clients import besiege, open_files, open_files_left, resident_kib
from tests.running import KEEP, Running, start_api

ALLOWED = {202, 400, 413, 415, 422}
MORE = 0.3
"""How often a case has a second picture."""
CHUNKED = 0.2
"""How often a case is sent in chunks."""
MOST_MIB = 400
MOST_TIMES = 3
"""Bounds on the API's memory, and on honest polls' p99 beside hostile clients."""


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
    match chance.randrange(7):
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
        case 3:
            field = chance.choice(["steps", "width", "seed", "ip_scale", "image_weights", "\x00"])
            value = chance.randbytes(chance.randint(0, 40))
            parts = [corpus.part("image", chance.choice(files)), corpus.part(field, value)]
        case 4:
            made = chance.choice(hostile_grammar.PICTURES)(chance)
            kind = chance.choice(("image", "image", "init_image", "control_image"))
            parts = [corpus.part(kind, made, filename="a")]
            if kind != "image":
                parts.append(corpus.part("image", chance.choice(files), filename="b"))
        case 5:
            return corpus.MULTIPART, hostile_grammar.form(chance, files)
        case _:
            return "application/json", hostile_grammar.json_body(chance, files)
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
            kind, data = body(chance)
            chunked = chance.random() < CHUNKED
            content = hostile_grammar.in_pieces(data, chance) if chunked else data
            answer = client.post("/generate", content=content, headers={"content-type": kind})
            statuses[answer.status_code] += 1
            assert answer.status_code in ALLOWED, (number, seed, answer.text)
    jobs = {name.decode().rpartition(":")[2] for name in redis.scan_iter("imageprompt:job:*")}
    stored = {path.name for path in (folder / "uploads").glob("*")}
    assert len(jobs) == statuses[202]
    return Outcome(statuses, before, resident_kib(running), len(stored - jobs))


def main() -> int:
    """Run one storm and one siege against an API and a Redis of their own."""
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder / "redis")
        server.start()
        try:
            settings = {
                "redis_url": server.url,
                "storage_url": (folder / "storage").as_uri(),
                "max_queued_jobs": 10**6,
            }
            with start_api(settings, folder / "log").wait("/healthz/live") as running:
                redis = Redis(port=server.port)
                files = open_files(running, server.port)
                outcome = storm(running, redis, folder / "storage", cases)
                siege = besiege(running, seconds=seconds)
                left = open_files_left(running, server.port, files)
                redis.close()
        finally:
            server.stop()
    mebibytes = [kib / 1024 for kib in (outcome.resident_before, outcome.resident_after)]
    broken = [
        *(["uploads without a job are left"] if outcome.leftovers else []),
        *(["an honest request failed"] if not siege.all_answered else []),
        *(["honest polls are slow"] if siege.times_slower > MOST_TIMES else []),
        *(["memory"] if siege.resident_most_kib > MOST_MIB * 1024 else []),
        *(["files stay open"] if left else []),
    ]
    lines = [
        f"# Hostile: {cases} uploads, then hostile clients for {seconds:g} seconds",
        "",
        f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}.",
        "",
        f"- answers to the uploads: {dict(sorted(outcome.statuses.items()))}",
        "- resident {:.1f} MiB after a quarter of them, {:.1f} MiB at the end".format(*mebibytes),
        f"- uploads left without a job: {outcome.leftovers}",
        *(f"- {line}" for line in siege.lines()),
        f"- files open above those before: {left}",
        "",
        f"Broken: {', '.join(broken)}." if broken else "Every promise was kept.",
    ]
    out = Path("out/hostile.md")
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    sys.stdout.write(out.read_text())
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
