"""An S3 server in this process and buckets on it."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
from moto.server import ThreadedMotoServer

from service.core.settings import Settings
from service.core.storage import Storage

REGION = "us-east-1"
KEYS = {"aws_access_key_id": "id", "aws_secret_access_key": "secret", "region_name": REGION}


@dataclass(frozen=True)
class Bucket:
    """One bucket; a storage on it lies under a prefix."""

    name: str
    endpoint: str

    @property
    def url(self) -> str:
        """The storage's URL."""
        return f"s3://{self.name}/some/prefix"

    @property
    def settings(self) -> dict[str, object]:
        """What an API or a worker is given; the region must stand in its environment."""
        return {
            "storage_url": self.url,
            "storage_endpoint": self.endpoint,
            "storage_access_key_id": KEYS["aws_access_key_id"],
            "storage_secret_access_key": KEYS["aws_secret_access_key"],
        }

    def storage(self) -> Storage:
        """The storage as a process with these settings opens it."""
        return Storage.from_settings(Settings(**self.settings))

    def names(self) -> list[str]:
        """Names of all objects of the bucket, told by a client of another make."""
        client = boto3.client("s3", endpoint_url=self.endpoint, **KEYS)
        listed = client.list_objects_v2(Bucket=self.name).get("Contents", [])
        client.close()
        return [entry["Key"] for entry in listed]


@contextmanager
def serving() -> Iterator[Callable[[], Bucket]]:
    """A started server; call what it yields for an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    numbers = itertools.count()

    def make() -> Bucket:
        bucket = Bucket(f"bucket-{next(numbers)}", endpoint)
        client = boto3.client("s3", endpoint_url=endpoint, **KEYS)
        client.create_bucket(Bucket=bucket.name)
        client.close()
        return bucket

    yield make
    server.stop()
