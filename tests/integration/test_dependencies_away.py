"""Redis and the storage go away under load, and come back."""

import time
from collections.abc import Callable

import boto3
import pytest
from moto.server import ThreadedMotoServer

from service.cli.redis_server import RedisServer
from tests.proxy import Mode, Proxy
from tests.running import until
from tests.stack import Service, picture

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
LONG = {"steps": 60, "width": 128, "height": 128}


@pytest.fixture
def own_redis(tmp_path):
    server = RedisServer(tmp_path / "redis", fsync="always")
    server.start()
    yield server
    server.stop()


def test_accepted_jobs_survive_a_killed_redis(
    make_service: Callable[..., Service], own_redis: RedisServer
) -> None:
    service = make_service(redis_url=own_redis.url, worker_slots=2).start()
    ids = [service.submit(image=picture(n), seed=n, **LONG) for n in range(6)]
    service.wait_step(ids[0])
    own_redis.process.kill()
    own_redis.process.wait()
    refused = service.post()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert service.client.get("/healthz/ready").status_code == 503
    assert service.client.get("/healthz/live").status_code == 200
    own_redis.start()
    for n, job_id in enumerate(ids):
        assert service.succeeded(job_id)["images"][0]["seed"] == n
    service.wait_ready()
    service.succeeded(service.submit())
    service.stop()


@pytest.fixture
def proxy():
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="pictures")
    client.close()
    between = Proxy(f"http://{host}:{port}")
    yield between
    between.close()
    server.stop()


@pytest.mark.parametrize("mode", [Mode.FAIL, Mode.HANG])
def test_results_wait_for_a_storage_that_is_away(
    make_service: Callable[..., Service], proxy: Proxy, mode: Mode
) -> None:
    service = make_service(storage_url="s3://pictures", storage_endpoint=proxy.url, **KEYS).start()
    ids = [service.submit(image=picture(n), seed=n, **LONG) for n in range(3)]
    service.wait_step(ids[-1])
    proxy.mode = mode
    refused = service.post(image=picture(99))
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    time.sleep(3)
    assert {service.job(job_id)["status"] for job_id in ids} == {"processing"}
    assert len(service.client.get("/jobs").json()["jobs"]) == 3
    proxy.mode = Mode.PASS
    for job_id in ids:
        service.succeeded(job_id)
        assert service.image(job_id)
    until(lambda: service.client.get("/healthz/ready").status_code == 200)
    service.stop()
