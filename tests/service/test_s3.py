"""The API on S3: uploads go there, and a picture is answered by a presigned URL."""

from collections.abc import Callable, Iterator

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from service.core.storage import Storage
from tests.running import Running
from tests.service.conftest import PNG, Api


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, object]]:
    """Settings that name an S3 server with an empty bucket.

    The bucket's name is its own: all moto servers of one process share what they hold.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings: dict[str, object] = {
        "storage_url": "s3://api-pictures/some/prefix",
        "storage_endpoint": f"http://{host}:{port}",
        "storage_access_key_id": "id",
        "storage_secret_access_key": "secret",
        "AWS_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=settings["storage_endpoint"],
        region_name="us-east-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="api-pictures")
    client.close()
    yield settings
    server.stop()


@pytest.mark.parametrize("public", [True, False])
def test_pictures_on_s3_reach_the_client(
    s3: dict[str, object],
    api: Api,
    make_api: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
    public: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    storage = Storage.open(
        str(s3["storage_url"]),
        endpoint=str(s3["storage_endpoint"]),
        access_key_id="id",
        secret_access_key="secret",
        presigned_url_seconds=60,
    )
    with make_api(redis_url=api.redis_url, storage_public=public, **s3) as running:
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
