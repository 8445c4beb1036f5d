"""Keys: nobody in without one where one is needed, and nobody sees what is another's."""

import contextlib
import json
import math
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from redis import Redis
from typer.testing import CliRunner

from service import api_keys
from service.api_keys import ApiKey, Scope
from service.cli.keys import app as keys_app
from service.cli.processes import RedisServer
from service.core import redis_keys
from tests.running import Running, connects, until
from tests.service.conftest import PNG, Api, problem

NewKey = Callable[..., tuple[str, ApiKey]]
FILES = {"image": ("a.png", PNG)}


def bearer(key: str) -> dict[str, str]:
    """Headers that carry a key."""
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def new_key(api: Api) -> Iterator[Callable[..., tuple[str, ApiKey]]]:
    """Makes keys; all are revoked afterwards."""

    def make(**options: object) -> tuple[str, ApiKey]:
        key, record = api_keys.make_key("test", now=time.time(), **options)
        api_keys.save(api.redis, record)
        until(lambda: api.client.get("/jobs").status_code == 401, what="the need of a key")
        return key, record

    yield make
    for record in api_keys.list_keys(api.redis):
        api_keys.revoke(api.redis, record.id)
    until(lambda: api.client.get("/jobs").status_code == 200, what="the end of that need")


def test_as_soon_as_a_key_is_made_one_is_needed(api: Api, new_key: NewKey) -> None:
    key, record = new_key()
    refused = api.post()
    problem(refused, 401)
    assert refused.headers["www-authenticate"] == "Bearer"
    answer = api.post(headers=bearer(key))
    assert answer.status_code == 202
    job = f"/jobs/{answer.json()['id']}"
    assert api.client.get(job, headers={"x-api-key": key}).status_code == 200
    problem(api.client.get(job), 401)
    assert api.redis.hget(f"imageprompt:job:{answer.json()['id']}", "owner").decode() == record.id
    for path in ("/healthz/live", "/metrics", "/docs", "/openapi.json", "/models"):
        assert api.client.get(path).status_code == 200


def test_only_the_very_key_lets_in(api: Api, new_key: NewKey) -> None:
    key, record = new_key()
    other_secret = key[:-1] + ("A" if key[-1] != "A" else "B")
    unknown = f"ip_{'0' * 12}_{'x' * 43}"
    for wrong in (other_secret, unknown, record.sha256, record.id, "", "x" * 5000, key + "x"):
        problem(api.client.get("/jobs", headers={"x-api-key": wrong}), 401)
    for authorization in ("Basic eDp5", key, f"bearer{key}", "Bearer"):
        problem(api.client.get("/jobs", headers={"authorization": authorization}), 401)
    assert api.client.get("/jobs", headers={"authorization": f"bearer {key}"}).status_code == 200


def test_a_key_does_not_stand_in_redis(api: Api, new_key: NewKey) -> None:
    key, record = new_key()
    stored = b"".join(api.redis.hvals(redis_keys.API_KEYS)).decode()
    assert key not in stored
    assert key.split("_", 2)[2] not in stored
    assert record.sha256 in stored


def test_an_expired_or_revoked_key_is_out(api: Api, new_key: NewKey) -> None:
    expired, _ = new_key(lifetime_seconds=-1)
    problem(api.client.get("/jobs", headers=bearer(expired)), 401)
    key, record = new_key()
    assert api.client.get("/jobs", headers=bearer(key)).status_code == 200
    api_keys.revoke(api.redis, record.id)
    until(lambda: api.client.get("/jobs", headers=bearer(key)).status_code == 401)


def test_a_right_is_needed_for_each_thing(api: Api, new_key: NewKey) -> None:
    key, _ = new_key(scopes=(Scope.READ,))
    assert api.client.get("/jobs", headers=bearer(key)).status_code == 200
    problem(api.post(headers=bearer(key)), 403)
    job = f"/jobs/{uuid.uuid4()}"
    problem(api.client.post(f"{job}/cancel", headers=bearer(key)), 403)
    problem(api.client.delete(job, headers=bearer(key)), 403)
    problem(api.client.get(job, headers=bearer(key)), 404)


def test_what_is_of_one_key_does_not_exist_for_another(api: Api, new_key: NewKey) -> None:
    mine, _ = new_key()
    theirs, _ = new_key()
    job_id = api.post(headers=bearer(mine)).json()["id"]
    api.finish(job_id)
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/events"),
        ("GET", "/images/0"),
    ):
        url = f"/jobs/{job_id}{path}"
        problem(api.client.request(method, url, headers=bearer(theirs)), 404)
    assert api.client.get("/jobs", headers=bearer(theirs)).json()["jobs"] == []
    assert len(api.client.get("/jobs", headers=bearer(mine)).json()["jobs"]) == 1


def test_a_key_has_its_pace_and_is_told_of_it(api: Api, new_key: NewKey) -> None:
    key, _ = new_key(requests_per_minute=3)
    left = []
    started = time.monotonic()
    for _ in range(3):
        answer = api.post(headers=bearer(key))
        assert answer.status_code == 202
        assert answer.headers["ratelimit-policy"] == '"requests";q=3;w=60'
        left.append(answer.headers["ratelimit"].split(";")[1])
    assert left == ["r=2", "r=1", "r=0"]
    refused = api.post(headers=bearer(key))
    spent = time.monotonic() - started
    problem(refused, 429)
    assert math.floor(20 - spent) <= int(refused.headers["retry-after"]) <= 20
    assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert api.client.get("/jobs", headers=bearer(key)).status_code == 200
    other, _ = new_key(requests_per_minute=3)
    assert api.post(headers=bearer(other)).status_code == 202


def test_a_key_has_so_many_jobs_at_once(api: Api, new_key: NewKey) -> None:
    key, record = new_key(max_jobs=2)
    first, second = (api.post(headers=bearer(key)).json()["id"] for _ in range(2))
    refused = api.post(headers=bearer(key))
    assert int(refused.headers["retry-after"]) >= 1
    problem(refused, 429)
    api.finish(first)
    assert api.post(headers=bearer(key)).status_code == 202
    problem(api.post(headers=bearer(key)), 429)
    api.client.post(f"/jobs/{second}/cancel", headers=bearer(key))
    bad = api.client.post("/generate", files={"image": ("a", b"GIF89a")}, headers=bearer(key))
    problem(bad, 415)
    assert api.post(headers=bearer(key)).status_code == 202, "a refused upload holds no place"
    assert api.redis.zcard(redis_keys.active_jobs(record.id)) == 2


@pytest.mark.usefixtures("warm_worker")
@pytest.mark.parametrize("pace", [None, 9])
def test_a_key_with_too_many_jobs_is_told_when_one_of_its_own_ends(
    api: Api, new_key: NewKey, pace: int | None
) -> None:
    api.redis.delete("rq:queue:imageprompt")
    others, _ = new_key()
    key, _ = new_key(max_jobs=1, requests_per_minute=pace)
    for _ in range(4):  # they fill the worker of the fixture
        assert api.post({"steps": 10}, headers=bearer(others)).status_code == 202
    job = api.post({"steps": 40}, headers=bearer(key)).json()["urls"]["self"]
    asked = time.monotonic()
    refused = api.post(headers=bearer(key))
    problem(refused, 429)
    eta = api.client.get(job, headers=bearer(key)).json()["eta_seconds"]
    took = time.monotonic() - asked
    assert eta > 8 - took, "the jobs of others end after 5 s"
    assert eta <= int(refused.headers["retry-after"]) <= eta + took + 2
    policies, left = ['"jobs";q=1'], [f'"jobs";r=0;t={refused.headers["retry-after"]}']
    if pace is not None:
        policies.insert(0, '"requests";q=9;w=60')
    assert refused.headers["ratelimit-policy"].split(", ") == policies
    assert refused.headers["ratelimit"].split(", ")[-1:] == left


@pytest.fixture
def own_address() -> str:
    """The address by which this machine's network knows it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


def test_others_connect_only_after_a_key_was_made(
    make_api: Callable[..., Running],
    redis_url: str,
    redis: Redis,
    storage_url: str,
    own_address: str,
) -> None:
    with make_api(redis_url=redis_url, storage_url=storage_url, host="0.0.0.0") as running:
        port = running.port
        assert not connects(own_address, port)
        assert "imageprompt keys create" in running.log.read_text()
        assert httpx.get(f"{running.url}/healthz/live", timeout=60).status_code == 200
        problem(httpx.post(f"{running.url}/generate", files=FILES, timeout=60), 401)
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=60)) as before:
            before.request("GET", "/healthz/live")
            assert before.getresponse().read()
            # Half a request, for an idle connection would be closed after 5 s.
            before.sock.sendall(b"GET /healthz/live HTTP/1.1\r\n")
            key, record = api_keys.make_key("test", now=time.time())
            api_keys.save(redis, record)
            until(lambda: connects(own_address, port), what="the open port")
            before.sock.sendall(b"Host: x\r\n\r\n")
            answer = before.sock.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200"), "who was there stays connected"
        url = f"http://{own_address}:{port}"
        problem(httpx.get(f"{url}/jobs", timeout=60), 401)
        answer = httpx.post(f"{url}/generate", files=FILES, headers=bearer(key), timeout=60)
        assert answer.status_code == 202
        assert httpx.get(f"{running.url}/healthz/live", timeout=60).status_code == 200
        assert running.stop() == 0
    with make_api(redis_url=redis_url, storage_url=storage_url, host="0.0.0.0") as running:
        assert connects(own_address, running.port), "with a key it is open from the start"
        assert "imageprompt keys create" not in running.log.read_text()


def test_others_cannot_connect_before_redis_has_answered(
    make_api: Callable[..., Running],
    tmp_path: Path,
    storage_url: str,
    own_address: str,
    free_port: int,
) -> None:
    server = RedisServer(tmp_path / "redis")
    settings = {"redis_url": server.url, "storage_url": storage_url, "host": "0.0.0.0"}
    with make_api(**settings, admin_port=free_port, admin_host=own_address) as running:
        ports = (running.port, free_port)
        server.start()
        try:
            assert not any(connects(own_address, port) for port in ports)
            with Redis.from_url(server.url) as client:
                api_keys.save(client, api_keys.make_key("test", now=time.time())[1])
            for port in ports:
                until(lambda port=port: connects(own_address, port), what="the open port")
        finally:
            server.stop()


def test_headers_without_an_end_are_not_read_for_ever(api: Api) -> None:
    for filler in (b"x" * 2**20, b"a: b\r\n" * 2**17):
        with socket.create_connection(("127.0.0.1", api.running.port), timeout=60) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nlong: " + filler)
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    long = httpx.get(f"{api.running.url}/healthz/live", headers={"x": "y" * 60_000}, timeout=60)
    assert long.status_code == 200


def test_off_loopback_everybody_is_served_where_the_operator_says_so(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> None:
    with make_api(
        redis_url=redis_url, storage_url=storage_url, host="0.0.0.0", allow_anonymous=True
    ) as running:
        assert "every client that can connect" in running.log.read_text()
        assert httpx.get(f"{running.url}/jobs", timeout=60).status_code == 200


def test_docs_metrics_and_health_may_have_a_port_of_their_own(
    make_api: Callable[..., Running], redis_url: str, storage_url: str, free_port: int
) -> None:
    settings = {"redis_url": redis_url, "storage_url": storage_url}
    with make_api(**settings, admin_port=free_port) as running:
        admin = f"http://127.0.0.1:{free_port}"
        until(lambda: connects("127.0.0.1", free_port), what="the admin port")
        assert httpx.post(f"{running.url}/generate", files=FILES, timeout=60).status_code == 202
        for path in ("/healthz/live", "/metrics", "/docs", "/openapi.json"):
            assert httpx.get(admin + path, timeout=60).status_code == 200, path
            assert httpx.get(running.url + path, timeout=60).status_code == 404, path
        assert 'route="/generate"' in httpx.get(f"{admin}/metrics", timeout=60).text
        assert httpx.get(f"{admin}/jobs", timeout=60).status_code == 404


def test_keys_are_made_listed_and_revoked_on_the_command_line(redis_url: str, redis: Redis) -> None:
    run = CliRunner().invoke
    made = run(
        keys_app,
        [
            "create",
            "ann",
            "--right",
            "read",
            "--per-minute",
            "9",
            "--days",
            "1",
            "--redis",
            redis_url,
        ],
    )
    shown = json.loads(made.output)
    [record] = api_keys.list_keys(redis)
    assert api_keys.matches(shown["key"], record)
    assert (record.name, record.scopes, record.requests_per_minute) == ("ann", (Scope.READ,), 9)
    assert record.expires_at is not None
    assert record.webhook_secret == shown["webhook_secret"]
    listed = run(keys_app, ["list", "--redis", redis_url]).output
    assert record.id in listed
    assert shown["key"] not in listed
    assert run(keys_app, ["revoke", record.id, "--redis", redis_url]).exit_code == 0
    assert api_keys.list_keys(redis) == []
    assert run(keys_app, ["revoke", record.id, "--redis", redis_url]).exit_code == 1


def test_keys_go_where_up_runs_unless_told_otherwise(
    redis_url: str, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMAGEPROMPT_REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "redis.url").write_text(redis_url)
    assert CliRunner().invoke(keys_app, ["create", "ann"]).exit_code == 0
    assert [record.name for record in api_keys.list_keys(redis)] == ["ann"]
    monkeypatch.setenv("IMAGEPROMPT_REDIS_URL", "redis://127.0.0.1:9/0")
    assert CliRunner().invoke(keys_app, ["create", "bob"]).exit_code == 1


def missing(running: Running) -> bool:
    """Whether the process says that the keys were lost."""
    return "imageprompt_api_keys_missing 1.0" in httpx.get(f"{running.url}/metrics").text


def test_a_redis_that_loses_the_keys_opens_nothing(
    make_api: Callable[..., Running], redis_url: str, redis: Redis, storage_url: str
) -> None:
    """Neither at once nor after a restart; new keys work, and so does revoking all of them."""
    settings = {"redis_url": redis_url, "storage_url": storage_url}
    key, record = api_keys.make_key("test", now=time.time())
    api_keys.save(redis, record)

    def status(**headers: str) -> int:
        return httpx.get(f"{running.url}/jobs", headers=headers, timeout=60).status_code

    with make_api(**settings) as running:
        assert status(**bearer(key)) == 200
        redis.flushdb()
        until(lambda: status(**bearer(key)) == 401, what="the cached key's end")
        assert status() == 401
        assert missing(running)
        assert "has lost the API keys" in running.tail()
    with make_api(**settings) as running:
        assert status() == 401
        again, record = api_keys.make_key("test", now=time.time())
        api_keys.save(redis, record)
        assert status(**bearer(again)) == 200
        api_keys.revoke(redis, record.id)
        until(lambda: status() == 200, what="anonymous use")
        assert not missing(running)


def test_a_key_may_be_demanded_before_there_is_one(
    make_api: Callable[..., Running], redis_url: str, storage_url: str
) -> None:
    settings = {"redis_url": redis_url, "storage_url": storage_url, "require_api_keys": True}
    with make_api(**settings, allow_anonymous=True) as running:
        assert httpx.get(f"{running.url}/jobs", timeout=60).status_code == 401


def test_a_right_that_this_release_does_not_know_gives_nothing(api: Api, new_key: NewKey) -> None:
    key, record = new_key(scopes=(Scope.READ,))
    content = json.loads(record.model_dump_json())
    content["rights"].append("of-tomorrow")
    content["tier"] = "of tomorrow"
    api.redis.hset(redis_keys.API_KEYS, record.id, json.dumps(content))
    time.sleep(api_keys.CACHE_SECONDS)
    assert api.client.get("/jobs", headers=bearer(key)).status_code == 200
    problem(api.post(headers=bearer(key)), 403)
    assert record.id in {one.id for one in api_keys.list_keys(api.redis)}


def test_a_damaged_key_is_no_key(api: Api, new_key: NewKey) -> None:
    key, record = new_key()
    api.redis.hset(redis_keys.API_KEYS, record.id, "{")
    until(lambda: api.client.get("/jobs", headers=bearer(key)).status_code == 401)
    assert api_keys.list_keys(api.redis) == []
    api.redis.hset(redis_keys.API_KEYS, record.id, record.model_dump_json())


@pytest.mark.parametrize(
    "damage",
    [
        {"rights": [["a"]]},
        {"rights": [{}]},
        {"rights": [None, 1]},
        {"rights": {}},
        {"sha256": "\xe9"},
        {"sha256": None},
        {"created_at": float("nan")},
        {"created_at": 1e300},
        {"expires_at": float("inf")},
        {"webhook_secret": 5},
        {"id": []},
    ],
    ids=str,
)
def test_a_damaged_key_leaves_the_others_alone(
    redis: Redis, redis_url: str, damage: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    made = [api_keys.make_key("test", now=time.time()) for _ in range(2)]
    for _, record in made:
        api_keys.save(redis, record)
    key, record = made[0]
    broken = json.dumps(json.loads(record.model_dump_json()) | damage)
    redis.hset(redis_keys.API_KEYS, record.id, broken)
    found = api_keys.list_keys(redis)
    assert made[1][1].id in {one.id for one in found}
    assert not any(api_keys.matches(key, one) and one.scopes for one in found)
    listed = CliRunner().invoke(keys_app, ["list", "--redis", redis_url])
    assert (listed.exit_code, made[1][1].id in listed.output) == (0, True)
    assert record.webhook_secret[-8:] not in capsys.readouterr().out
