"""`python -m bench.http`: requests a second, per core, and p99, of three HTTP layers in one run.

Writes out/bench/http.md and http.json. A round asks every server in turn, so that whatever else
the machine does meets all of them; the figures are those of the median round.
"""

import argparse
import base64
import io
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from PIL import Image, ImageFilter

from bench.http import load, servers
from service.core.upload_types import UploadKind
from service.submission import images

OUT: Final = Path("out/bench")
UPLOAD_BYTES: Final = 300_000
BOUNDARY: Final = "bench-boundary"
POLLING_CLIENTS: Final = 8
POLL_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request to one server."""

    server: servers.Server
    what: str
    message: bytes
    clients: int = 16
    also: servers.Server | None = None
    """A server whose CPU time the case costs too, told apart."""


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one case in one round."""

    per_second: float
    per_core: float
    p50_seconds: float
    p99_seconds: float
    clients: int
    refused: int
    other_share: float
    """CPU time of the other server for each second of this one."""


def photograph() -> bytes:
    """A JPEG of about 300 kB with the look of a photograph: soft shapes and some grain."""
    dice = random.Random(0)  # noqa: S311  a picture, not a secret
    coarse = Image.frombytes("RGB", (32, 24), dice.randbytes(32 * 24 * 3))
    soft = coarse.resize((1024, 768), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    grain = Image.frombytes("RGB", (1024, 768), dice.randbytes(1024 * 768 * 3))
    best = b""
    for share in range(1, 40):
        out = io.BytesIO()
        Image.blend(soft, grain, share / 200).save(out, "JPEG", quality=90)
        best = out.getvalue()
        if len(best) >= UPLOAD_BYTES:
            break
    return best


def multipart(image: bytes) -> bytes:
    """The body of a form with one file, `image`."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def cases(stack: ExitStack, folder: Path, image: bytes, *, peers: bool = True) -> list[Case]:
    """Start the servers and say what is asked of them, of each kind of request side by side."""
    form = multipart(image)
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    api, redis = stack.enter_context(servers.ours(folder / "ours"))
    job = httpx.post(f"{api.url}/generate", content=form, headers={"Content-Type": kind})
    job_url = f"{api.url}/jobs/{job.raise_for_status().json()['id']}"
    data_url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    inputs = json.dumps({"input": {"image": data_url}}).encode()

    def post(url: str, body: bytes, content_type: str) -> bytes:
        return load.request("POST", url, body, content_type)

    etag = httpx.get(job_url).headers["ETag"]
    unchanged = load.request("GET", job_url, if_none_match=etag)
    poll = Case(api, "poll a job", load.request("GET", job_url), also=redis)
    known = Case(api, "poll a known job (304)", unchanged, also=redis)
    health = Case(api, "health", load.request("GET", f"{api.url}/healthz/live"))
    posts = Case(api, "post 300 kB", post(f"{api.url}/generate", form, kind), also=redis)
    if not peers:
        return [poll, known, health, posts]
    cog = stack.enter_context(servers.cog(folder / "cog"))
    lit = stack.enter_context(servers.litserve(folder / "litserve"))
    return [
        poll,
        known,
        health,
        Case(cog, "health", load.request("GET", f"{cog.url}/health-check")),
        Case(lit, "health", load.request("GET", f"{lit.url}/health")),
        posts,
        Case(cog, "post 300 kB", post(f"{cog.url}/predictions", inputs, "application/json"), 1),
        Case(lit, "post 300 kB", post(f"{lit.url}/predict", form, kind)),
    ]


def measure(case: Case, *, lasts_seconds: float) -> Row:
    """Run one case once."""
    before = case.server.cpu_seconds(), case.also.cpu_seconds() if case.also else 0.0
    figures = load.run(
        case.server.url, case.message, clients=case.clients, lasts_seconds=lasts_seconds
    )
    spent = case.server.cpu_seconds() - before[0]
    other = case.also.cpu_seconds() - before[1] if case.also else 0.0
    return Row(
        figures.per_second,
        len(figures.seconds) / spent,
        figures.quantile(0.5),
        figures.quantile(0.99),
        case.clients,
        figures.errors,
        other / spent,
    )


def saturated(cases: list[Case], *, lasts_seconds: float) -> tuple[float, float]:
    """p99 in seconds of polls by a few clients that pause: alone, and while posts come in."""
    poll = next(case for case in cases if case.what.startswith("poll"))
    post = next(case for case in cases if case.what.startswith("post"))

    def paced() -> float:
        found = load.run(
            poll.server.url,
            poll.message,
            clients=POLLING_CLIENTS,
            lasts_seconds=lasts_seconds,
            pause_seconds=POLL_PAUSE_SECONDS,
        )
        return found.quantile(0.99)

    alone = paced()
    others = multiprocessing.get_context("spawn").Process(
        target=load.run,
        args=(post.server.url, post.message),
        kwargs={"clients": post.clients, "lasts_seconds": lasts_seconds + 3},
    )
    others.start()
    time.sleep(2)
    beside = paced()
    others.join()
    return alone, beside


def at_rest(folder: Path) -> tuple[float, float, float]:
    """Seconds and CPU seconds until an API process answers, and its memory (MB) at rest."""
    began = time.monotonic()
    with servers.ours(folder) as (api, _):
        took, cpu = time.monotonic() - began, api.cpu_seconds()
        time.sleep(2)
        status = Path(f"/proc/{api.pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return took, cpu, int(resident.split()[1]) / 1e3


def timed(action: Callable[[], object], *, times: int = 15) -> float:
    """Median CPU seconds of an action."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        action()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def table(rows: dict[tuple[str, str], Row], image: bytes) -> str:
    """The figures as Markdown."""
    lines = [
        (
            f"An upload of {len(image):,} bytes, {os.cpu_count()} cores, the last one the "
            "servers', the others the clients'; requests a core are those for each second of the "
            "server's own CPU time. cog and LitServe have no jobs that could be polled; cog "
            "refuses a prediction while it counts "
            "another as running, so it gets one client, and only good answers count."
        ),
        "",
        "| server | request | clients | a second | a second and core | p50 ms | p99 ms | refused |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {server} | {what} | {row.clients} | {row.per_second:,.0f} | {row.per_core:,.0f} "
        f"| {row.p50_seconds * 1e3:.1f} | {row.p99_seconds * 1e3:.1f} | {row.refused} |"
        for (server, what), row in rows.items()
    ]
    decode = timed(
        lambda: images.normalise(
            image, io.BytesIO(), kind=UploadKind.PICTURE, max_pixels=40_000_000
        )
    )
    shares = ", ".join(
        f"{row.other_share:.2f} ({what})"
        for (server, what), row in rows.items()
        if server == "imageprompt" and row.other_share
    )
    lines += [
        "",
        (
            f"Of each post to imageprompt, decoding, checking and normalising the picture takes "
            f"{decode * 1e3:.0f} ms of CPU; the others keep the bytes unread."
        ),
        f"Redis' own CPU time for each CPU second of the API: {shares}.",
    ]
    return "\n".join(lines) + "\n"


def ratios(seen: dict[tuple[str, str], list[Row]]) -> str:
    """Ours to LitServe's, a second and core: the median of the rounds, each by itself."""
    lines = []
    for what, peers in (("poll a job", "health"), ("post 300 kB", "post 300 kB")):
        ours, theirs = seen["imageprompt", what], seen.get(("litserve", peers), [])
        found = [a.per_core / b.per_core for a, b in zip(ours, theirs, strict=False)]
        if found:
            lines.append(
                f"{what} against LitServe's {peers}: {statistics.median(found):.2f} times."
            )
    return "\n" + "\n".join(lines) + "\n"


def told(beside: list[tuple[float, float]], rest: list[tuple[float, float, float]]) -> str:
    """The rest of the figures as text."""
    alone, busy = (statistics.median(column) * 1e3 for column in zip(*beside, strict=True))
    factor = statistics.median(b / a for a, b in beside)
    took, cpu, memory = (statistics.median(column) for column in zip(*rest, strict=True))
    return (
        f"\np99 of {POLLING_CLIENTS} clients that poll every {POLL_PAUSE_SECONDS:g} s: "
        f"{alone:.0f} ms; while 16 clients post: {busy:.0f} ms, {factor:.1f} times.\n"
        f"An API process answers after {took:.1f} s ({cpu:.1f} s of CPU), "
        f"and has {memory:.0f} MB at rest.\n"
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="of each case in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="leave cog and LitServe out")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    image = photograph()
    seen: dict[tuple[str, str], list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        *others, last = sorted(os.sched_getaffinity(0))
        with servers.on_core({last}):  # so that each server has the same, whatever it starts
            everything = cases(stack, Path(folder), image, peers=not options.no_peers)
        stack.enter_context(servers.on_core(set(others) or {last}))
        for _ in range(options.rounds):
            for case in everything:
                row = measure(case, lasts_seconds=options.seconds)
                seen.setdefault((case.server.name, case.what), []).append(row)
        beside = [
            saturated(everything, lasts_seconds=options.seconds) for _ in range(options.rounds)
        ]
        rest = [at_rest(Path(folder) / f"rest-{number}") for number in range(options.rounds)]
    middle = {
        key: sorted(rows, key=lambda row: row.per_core)[len(rows) // 2]
        for key, rows in seen.items()
    }
    text = table(middle, image) + ratios(seen) + told(beside, rest)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "http.md").write_text(text, encoding="utf-8")
    figures = [
        {"server": key[0], "request": key[1], **{n: getattr(row, n) for n in Row.__slots__}}
        for key, row in middle.items()
    ]
    (options.out / "http.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
