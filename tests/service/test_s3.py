"""The API on S3: uploads go there, and a picture is answered by a presigned URL."""

from collections.abc import Callable

import httpx
import pytest

from tests.buckets import Bucket
from tests.running import Running
from tests.service.conftest import PNG, Api


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
            httpx.Client(base_url=running.url, timeout=30),
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
            picture = httpx.get(answer.headers["location"])
            assert (picture.content, picture.headers["content-type"]) == (PNG, "image/png")
            bad = client.post("/generate", files={"image": ("a", b"GIF89a")})
            assert bad.status_code == 415
            assert storage.delete_folder("uploads") == 1, "a refused upload leaves nothing"
