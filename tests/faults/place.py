"""Where faults happen: real Redis with AOF, moto's S3 behind a proxy, the API, two workers."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from service.cli.processes import RedisServer
from tests import previous_release
from tests.faults.load import Judge
from tests.proxy import Proxy
from tests.stack import Service
from tests.tiny_catalog import write_catalog

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@dataclass
class Place:
    """Where the faults happen."""

    service: Service
    judge: Judge
    redis: RedisServer
    proxy: Proxy
    folder: Path

    def moment(self, most_seconds: float = 1.0) -> None:
        """Wait a random time, so that the fault meets another state each time."""
        time.sleep(random.uniform(0, most_seconds))

    def replace_worker(self, index: int, **options: Any) -> None:
        """Start a worker in place of one that has ended; `options` are of `start_worker`."""
        self.service.add_worker(wait=False, **options)
        del self.service.workers[index]

    def previous_release(self) -> Path:
        """Folder with the code of the previous release."""
        folder = self.folder / "previous"
        if not folder.exists():
            folder.mkdir()
            previous_release.extract(folder)
        return folder


@contextmanager
def opened(folder: Path, fsync: str) -> Iterator[Place]:
    """Everything running, and the right pictures known; ended with the block."""
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
    service = Service(settings, folder)
    try:
        service.start(workers=2)
        yield Place(service, Judge(service), redis, proxy, folder)
    finally:
        service.stop()
        proxy.close()
        redis.stop()
        moto.stop()
