"""One client for a folder and for S3 over the wire, with presigned URLs that others can read."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from service.core.errors import ConfigurationError
from service.core.settings import ROOT
from service.core.storage import ObjectMissing, Storage, StorageError
from tests.buckets import REGION, Bucket
from tests.running import until


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, storage_url: str) -> Storage:
    """An empty storage of each kind."""
    if request.param == "folder":
        return Storage.open(storage_url, presigned_url_seconds=60)
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.storage()


async def _round_trip(storage: Storage) -> bytes:
    await storage.put_async("uploads/a/1.png", b"other", "image/png")
    return await storage.get_async("uploads/a/1.png")


def test_objects_come_back_and_go_by_folder(storage: Storage) -> None:
    storage.put("uploads/a/0.png", b"bytes", "image/png")
    storage.put("uploads/ab/0.png", b"neighbour", "image/png")
    assert storage.get("uploads/a/0.png") == b"bytes"
    assert asyncio.run(_round_trip(storage)) == b"other"
    storage.check()
    assert storage.delete_folder("uploads/a") == 2
    assert storage.delete_folder("uploads/a") == 0
    assert storage.get("uploads/ab/0.png") == b"neighbour"


def test_a_missing_object_is_distinguished_from_a_storage_that_does_not_answer(
    storage: Storage,
) -> None:
    with pytest.raises(ObjectMissing):
        storage.get("uploads/none/0.png")
    with pytest.raises(ObjectMissing):
        asyncio.run(storage.get_async("uploads/none/0.png"))


def test_a_presigned_url_is_read_without_keys(bucket: Bucket) -> None:
    storage = bucket.storage()
    storage.put("results/a/0.png", b"picture", "image/png")
    assert storage.signs
    answer = httpx.get(storage.sign("results/a/0.png"), timeout=60)
    assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/png")


def test_a_storage_that_is_away_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", REGION)
    with pytest.raises(StorageError) as caught:
        Bucket("unreachable", "http://127.0.0.1:9").storage().put(
            "uploads/a/0.png", b"x", "image/png"
        )
    assert not isinstance(caught.value, ObjectMissing)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment with keys to all three clouds, which sign without asking anybody."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "private_key": key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
        "private_key_id": "id",
        "client_email": "somebody@example.com",
        "client_id": "1",
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    for name, value in {
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json"),
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", "s3.us-east-1.amazonaws.com/bucket"),
        ("s3://bucket/a/prefix", "s3.us-east-1.amazonaws.com/bucket/a/prefix"),
        ("gs://bucket", "storage.googleapis.com/bucket"),
        ("gs://bucket/a/prefix", "storage.googleapis.com/bucket/a/prefix"),
        ("az://container", "account.blob.core.windows.net/container"),
        ("az://container/a/prefix", "account.blob.core.windows.net/container/a/prefix"),
    ],
)
def test_a_url_names_a_bucket_and_a_prefix_in_it(url: str, place: str) -> None:
    """Azure's account is no part of it: the environment names that."""
    signed = Storage.open(url, presigned_url_seconds=60).sign("results/a/0.png")
    assert signed.partition("?")[0] == f"https://{place}/results/a/0.png"


def test_azure_without_an_account_is_refused_by_the_setting_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigurationError, match=r"IMAGEPROMPT_STORAGE_URL.*Account"):
        Storage.open("az://container/prefix", presigned_url_seconds=60)


@pytest.mark.parametrize("url", ["http://x/y", "ftp://x", "nonsense", ""])
def test_another_kind_of_url_is_refused_by_the_setting_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match="IMAGEPROMPT_STORAGE_URL"):
        Storage.open(url, presigned_url_seconds=60)


def test_what_a_killed_write_left_is_deleted(tmp_path: Path) -> None:
    """No list of objects shows it, so that no other sweep would find it."""
    storage = Storage.open((tmp_path / "s").as_uri(), presigned_url_seconds=60)
    writer = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_WRITES, (tmp_path / "s").as_uri()],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    partial = until(lambda: list((tmp_path / "s").rglob("*#*")), seconds=60)
    writer.kill()
    writer.wait()
    storage.put("uploads/a/whole.png", b"x", "image/png")
    if not partial[0].exists():  # it was killed between two writes
        partial[0].write_bytes(b"x")
    assert storage.delete_partial(before=storage.now() - 3600) == 0
    assert storage.delete_partial(before=storage.now() + 1) >= 1
    assert list((tmp_path / "s").rglob("*#*")) == []
    assert storage.get("uploads/a/whole.png") == b"x"


ENDLESS_WRITES = """
import sys
from service.core.storage import Storage
storage = Storage.open(sys.argv[1], presigned_url_seconds=60)
while True:
    storage.put("uploads/a/0.png", bytes(2**27), "image/png")
"""


def test_a_folder_keeps_the_mark_of_its_owner(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path.as_uri(), presigned_url_seconds=60)
    assert storage.owner_mark is None
    storage.mark_owner("of one Redis")
    again = Storage.open(tmp_path.as_uri(), presigned_url_seconds=60)
    assert again.owner_mark == "of one Redis"
