"""The API on S3: uploads go there, and a picture is answered by a presigned URL."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from service.core.settings import Settings
from service.core.storage import Storage
from tests.buckets import Bucket
from tests.proxy import Mode, Proxy
from tests.running import KEEP, Running
from tests.service.conftest import PNG, Api, problem

FILES = {"image": ("a.png", PNG)}


@pytest.mark.parametrize("public", [True, False])
def test_pictures_on_s3_reach_the_client(
    bucket: Bucket,
    api: Api,
    make_api: Callable[..., Running],
    public: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    storage = bucket.storage()
    settings = {"redis_url": api.redis_url, "storage_public": public, **bucket.settings}
    with make_api(**settings) as running:
        on_s3 = Api(
            httpx.Client(base_url=running.url, timeout=60, limits=KEEP),
            running,
            api.redis,
            api.redis_url,
            api.folder,
            storage,
            api.transitions,
        )
        with on_s3.client as client:
            assert client.get("/healthz/ready").json()["storage"]
            job_id = on_s3.job()
            assert storage.get(f"uploads/{job_id}/image-0.png").startswith(b"\x89PNG")
            on_s3.finish(job_id)
            answer = client.get(f"/jobs/{job_id}/images/0")
            if not public:
                assert (answer.status_code, answer.content) == (200, PNG)
                return
            assert answer.status_code == 307
            picture = httpx.get(answer.headers["location"], timeout=60)
            assert (picture.content, picture.headers["content-type"]) == (PNG, "image/png")
            itself = client.get(f"/jobs/{job_id}/images/0", params={"redirect": "false"})
            assert (itself.status_code, itself.content) == (200, PNG)
            bad = client.post("/generate", files={"image": ("a", b"GIF89a")})
            assert bad.status_code == 415
            assert storage.delete_folder("uploads") == 1, "a refused upload leaves nothing"


def test_who_uploads_to_a_silent_storage_hears_of_it_soon(
    bucket: Bucket, make_api: Callable[..., Running], redis_url: str
) -> None:
    """Within 10 s; the storage's own retries, which begin before, still go on by then."""
    with contextlib.closing(Proxy(bucket.endpoint)) as proxy, ThreadPoolExecutor(1) as beside:
        behind = replace(bucket, endpoint=proxy.url)
        with make_api(redis_url=redis_url, **behind.settings) as running:
            assert httpx.get(f"{running.url}/jobs", timeout=60).json()["jobs"] == []
            proxy.mode = Mode.HANG
            retries = beside.submit(behind.storage().put, "health/beside", b"x", "text/plain")
            refused = httpx.post(f"{running.url}/generate", files=FILES, timeout=60)
            assert not retries.done()
            problem(refused, 503)
            assert int(refused.headers["retry-after"]) > 0
            assert httpx.get(f"{running.url}/jobs", timeout=60).json()["jobs"] == []
            proxy.mode = Mode.PASS
            assert httpx.post(f"{running.url}/generate", files=FILES, timeout=60).status_code == 202


def test_presigned_urls_lead_to_the_public_endpoint(bucket: Bucket) -> None:
    """The host is part of the signature, so a proxy cannot put it there afterwards."""
    with contextlib.closing(Proxy(bucket.endpoint)) as proxy:
        settings = Settings(**bucket.settings, storage_public_url=proxy.url)
        storage = Storage.from_settings(settings)
        storage.put("results/1/0.png", PNG, "image/png")
        url = storage.sign("results/1/0.png")
        assert url.startswith(f"{proxy.url}/")
        assert httpx.get(url, timeout=60).content == PNG
