"""S3 as the storage: moto's server over the wire, with a proxy between that can fail and hang."""

import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.buckets import REGION, Bucket
from tests.proxy import Mode, Proxy
from tests.running import until
from tests.stack import Service, picture, pixels

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": REGION}
LONG = {"steps": 100, "width": 128, "height": 128}


@pytest.fixture(scope="module")
def bucket(make_bucket: Callable[[], Bucket]) -> Bucket:
    """The bucket that the module's service stores in."""
    return make_bucket()


@pytest.fixture(autouse=True)
def answering(proxy: Proxy) -> Iterator[None]:
    """Leave the storage as it was found."""
    yield
    proxy.mode = Mode.PASS


@pytest.fixture(scope="module")
def proxy(bucket: Bucket) -> Iterator[Proxy]:
    """What stands between the service and its storage."""
    between = Proxy(bucket.endpoint)
    yield between
    between.close()


@pytest.fixture(scope="module")
def service(make_service: Callable[..., Service], bucket: Bucket, proxy: Proxy) -> Service:
    """A service on that storage, with the keys in its environment."""
    settings = {"storage_url": bucket.url, "storage_endpoint": proxy.url}
    return make_service(drain_seconds=2, **settings, **KEYS).start()


def test_pictures_go_to_s3_and_clients_are_sent_there(
    service: Service, bucket: Bucket, proxy: Proxy
) -> None:
    job = service.succeeded(service.submit(seed=2))
    names = bucket.names()
    assert any(name.startswith(f"some/prefix/uploads/{job['id']}/") for name in names)
    assert any(name.startswith(f"some/prefix/results/{job['id']}/") for name in names)
    answer = service.client.get(f"/jobs/{job['id']}/images/0")
    assert answer.status_code in (302, 303, 307)
    url = answer.headers["location"]
    assert url.startswith(proxy.url)
    assert "X-Amz-Signature" in url
    assert len(pixels(httpx.get(url, timeout=60).content)) == 64 * 64 * 3


def test_upload_is_refused_before_a_job_exists_while_the_storage_is_away(
    service: Service, proxy: Proxy
) -> None:
    known = service.client.get("/jobs").json()["jobs"]
    proxy.mode = Mode.FAIL
    refused = service.post(image=picture(99))
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert service.client.get("/jobs").json()["jobs"] == known


@pytest.mark.parametrize("mode", [Mode.FAIL, Mode.HANG])
def test_results_wait_for_a_storage_that_is_away(
    service: Service, proxy: Proxy, mode: Mode
) -> None:
    ids = [service.submit(image=picture(n), seed=n, **LONG) for n in range(3)]
    service.wait_step(ids[-1])
    proxy.mode = mode
    time.sleep(3)
    assert service.job(ids[-1])["status"] == "processing"
    proxy.mode = Mode.PASS
    for job_id in ids:
        service.succeeded(job_id)
        assert service.image(job_id)
    until(lambda: service.client.get("/healthz/ready").status_code == 200)
