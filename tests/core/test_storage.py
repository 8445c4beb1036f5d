"""One client for a folder and for S3 over the wire, with presigned URLs that others can read."""

import asyncio

import httpx
import pytest

from service.core.errors import ConfigurationError
from service.core.storage import ObjectMissing, Storage, StorageError
from tests.buckets import REGION, Bucket


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


def test_a_missing_object_is_told_from_a_storage_that_is_away(storage: Storage) -> None:
    with pytest.raises(ObjectMissing):
        storage.get("uploads/none/0.png")
    with pytest.raises(ObjectMissing):
        asyncio.run(storage.get_async("uploads/none/0.png"))


def test_a_presigned_url_is_read_without_keys(bucket: Bucket) -> None:
    storage = bucket.storage()
    storage.put("results/a/0.png", b"picture", "image/png")
    assert storage.signs
    answer = httpx.get(storage.sign("results/a/0.png"))
    assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/png")


def test_a_storage_that_is_away_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", REGION)
    with pytest.raises(StorageError) as caught:
        Bucket("away", "http://127.0.0.1:9").storage().put("uploads/a/0.png", b"x", "image/png")
    assert not isinstance(caught.value, ObjectMissing)


@pytest.mark.parametrize("url", ["http://x/y", "ftp://x", "nonsense", ""])
def test_another_kind_of_url_is_refused_by_the_setting_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match="IMAGEPROMPT_STORAGE_URL"):
        Storage.open(url, presigned_url_seconds=60)
