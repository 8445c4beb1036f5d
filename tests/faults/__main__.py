"""`python -m tests.faults`: every fault many times; a table in out/faults.md.

Real processes: Redis with AOF, moto's S3 behind a proxy, the API, two workers, the tiny model.
Exit status 1 if a job was lost, wrong or stuck.
"""

import argparse
import tempfile
import time
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from service.cli.redis_server import RedisServer
from tests.faults.kinds import KINDS, Place
from tests.faults.load import Judge, Tally
from tests.proxy import Proxy
from tests.stack import Service
from tests.tiny_catalog import write_catalog

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


def main() -> int:
    """Run what the command line asks for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--only", choices=list(KINDS), action="append")
    parser.add_argument("--fsync", choices=["everysec", "always"], default="everysec")
    parser.add_argument("--out", type=Path, default=Path("out/faults.md"))
    options = parser.parse_args()
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = _open(Path(name), options.fsync)
        try:
            for kind in options.only or KINDS:
                tally = Tally()
                for _ in range(options.repeat):
                    tally += KINDS[kind](place)
                    print(f"{kind}: {tally}", flush=True)  # noqa: T201  a report for a person
                rows.append((kind, tally))
        finally:
            place.service.stop()
            place.proxy.close()
            place.redis.stop()
    minutes = (time.monotonic() - began) / 60
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(_report(rows, options.repeat, options.fsync, minutes))
    print(options.out.read_text())  # noqa: T201
    return int(any(tally.lost or tally.wrong or tally.stuck for _, tally in rows))


def _open(folder: Path, fsync: str) -> Place:
    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    ).create_bucket(Bucket="pictures")
    proxy = Proxy(f"http://{host}:{port}")
    redis = RedisServer(folder / "redis", fsync="always" if fsync == "always" else "everysec")
    redis.start()
    settings = {
        "models": write_catalog(folder / "models"),
        "redis_url": redis.url,
        "storage_url": "s3://pictures",
        "storage_endpoint": proxy.url,
        "lease_seconds": 6,
        "worker_slots": 8,
        "drain_seconds": 1,
        **KEYS,
    }
    service = Service(settings, folder).start(workers=2)
    return Place(service, Judge(service), redis, proxy)


def _report(rows: list[tuple[str, Tally]], repeat: int, fsync: str, minutes: float) -> str:
    lines = [
        f"# Faults, {repeat} times each (Redis appendfsync {fsync}; {minutes:.0f} minutes)",
        "",
        (
            "| fault | jobs answered 202 | lost | wrong or mixed pictures | stuck after 60 s "
            "| slowest recovery |"
        ),
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {kind} | {tally.jobs} | {tally.lost} | {tally.wrong} | {tally.stuck} "
        f"| {tally.slowest_seconds:.1f} s |"
        for kind, tally in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
