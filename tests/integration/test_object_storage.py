"""S3 as the storage: moto's server, spoken to over the wire."""

from collections.abc import Callable

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.running import until
from tests.stack import Service, pixels

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def s3(endpoint: str):
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="pictures")
    yield client
    client.close()


def test_pictures_go_to_s3_and_clients_are_sent_there(
    make_service: Callable[..., Service], endpoint: str, s3
) -> None:
    service = make_service(
        storage_url="s3://pictures/some/prefix", storage_endpoint=endpoint, **KEYS
    ).start()
    job = service.succeeded(service.submit(seed=2))
    listed = s3.list_objects_v2(Bucket="pictures", Prefix="some/prefix/")["Contents"]
    names = [entry["Key"] for entry in listed]
    assert any(f"uploads/{job['id']}/" in name for name in names)
    assert any(f"results/{job['id']}/" in name for name in names)
    answer = service.client.get(f"/jobs/{job['id']}/images/0")
    assert answer.status_code in (302, 303, 307)
    url = answer.headers["location"]
    assert url.startswith(endpoint)
    assert "X-Amz-Signature" in url
    assert len(pixels(httpx.get(url).content)) == 64 * 64 * 3


def test_input_that_was_deleted_ends_its_job(
    make_service: Callable[..., Service], endpoint: str, s3
) -> None:
    service = make_service(storage_url="s3://pictures/other", storage_endpoint=endpoint, **KEYS)
    service.start_api()
    # No worker yet, so the job waits while its upload disappears.
    answer = service.post()
    job_id = answer.json()["id"]
    for entry in s3.list_objects_v2(Bucket="pictures", Prefix="other/uploads")["Contents"]:
        s3.delete_object(Bucket="pictures", Key=entry["Key"])
    service.add_worker()
    job = until(lambda: (found := service.job(job_id))["status"] == "failed" and found)
    assert job["error"]["type"] == "urn:imageprompt:error:input-lost"
