"""Several replicas behind a load balancer are one service, also while all of them are replaced."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli import processes
from service.core import redis_keys
from service.core.metrics import STAGES
from tests.deploy.exposition import exposed, named_values, samples
from tests.deploy.test_queries import QUERIES, RECORDED, TARGET_LABELS
from tests.integration.balancer import Balancer
from tests.running import Running, redis_client, start_api, start_worker, until
from tests.stack import FINAL, Service, picture

CLIENTS = 6
PATIENCE = 400.0
"""Seconds; a loaded machine takes minutes to load six Pythons with torch."""
PAUSE_SECONDS = 3.0
"""From leaving the load balancer to SIGTERM, for requests that it is just passing on. Pods wait
longer (`preStop`, tests/deploy/test_policy.py): a cluster's proxies are slower to learn of it."""
ONLY_ON_A_GPU = {"imageprompt_device_memory_bytes"}


@dataclass
class Cluster:
    """Two APIs behind nginx, and two workers."""

    service: Service
    balancer: Balancer
    apis: list[Running] = field(default_factory=list)
    workers: list[Running] = field(default_factory=list)
    started: int = 0

    def log(self, what: str) -> Path:
        """A fresh log file."""
        self.started += 1
        return self.service.folder / f"{what}-{self.started}.log"

    def new_api(self) -> Running:
        """One more API that answers."""
        api = start_api(self.service.settings, self.log("api"))
        return self.service.stack.enter_context(api).wait("/healthz/live")

    def new_worker(self) -> Running:
        """One more worker, still loading."""
        worker = start_worker(self.service.settings, self.log("worker"))
        return self.service.stack.enter_context(worker)

    def client(self) -> httpx.Client:
        """A client of the load balancer."""
        return httpx.Client(base_url=self.balancer.url, timeout=90)


@pytest.fixture(scope="module")
def cluster(
    make_service: Callable[..., Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    balancer = Balancer(tmp_path_factory.mktemp("balancer") / "nginx")
    cluster = Cluster(make_service(worker_slots=4), balancer)
    cluster.workers = [cluster.new_worker() for _ in range(2)]
    cluster.apis = [cluster.new_api() for _ in range(2)]
    balancer.start(*(api.url for api in cluster.apis))
    for worker in cluster.workers:
        worker.wait("/healthz/ready", seconds=PATIENCE)
    yield cluster
    balancer.stop()


def post(client: httpx.Client, hue: int = 0, **headers: str) -> httpx.Response:
    """One small job."""
    files = {"image": ("a.png", picture(hue), "image/png")}
    data = {"steps": "3", "seed": str(hue)}
    return client.post("/generate", files=files, data=data, headers=headers)


def events(stream: httpx.Response) -> Iterator[dict[str, str]]:
    """The server-sent events of an answer, as they arrive."""
    event: dict[str, str] = {}
    for line in stream.iter_lines():
        if line:
            name, _, value = line.partition(":")
            event[name] = value.strip()
        elif event:
            if "event" in event:
                yield event
            event = {}


def test_a_job_is_the_same_behind_every_replica(cluster: Cluster) -> None:
    """Posted to one API, known to both; polled and fetched through either."""
    with cluster.client() as client:
        job_id = post(client, 3).json()["id"]
        path = f"/jobs/{job_id}"
        until(lambda: client.get(path).json()["status"] == "succeeded", what="the job's end")
        answers = [httpx.get(api.url + path, timeout=90).json() for api in cluster.apis]
        jobs = [{k: v for k, v in a.items() if k not in ("images", "urls")} for a in answers]
        assert jobs[0] == jobs[1]
        urls = [f"{api.url}{path}/images/0" for api in cluster.apis]
        pictures = {httpx.get(url, timeout=90).content for url in urls}
        assert len(pictures) == 1
        wanted = answers[0]["images"][0]["sha256"]
        assert hashlib.sha256(pictures.pop()).hexdigest() == wanted
        assert answers[0]["urls"]["self"].startswith("http://127.0.0.1")


def test_the_same_idempotency_key_gives_the_same_job_at_every_replica(cluster: Cluster) -> None:
    """Also where both replicas are asked at the same moment."""
    body = {"files": {"image": ("a.png", picture(9), "image/png")}, "data": {"steps": "2"}}
    headers = {"Idempotency-Key": "once-and-no-more"}

    def ask(number: int) -> httpx.Response:
        url = f"{cluster.apis[number % 2].url}/generate"
        return httpx.post(url, headers=headers, timeout=60, **body)  # type: ignore[arg-type]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(CLIENTS)))
    # 409: the first one was still being taken in.
    assert {answer.status_code for answer in answers} <= {200, 202, 409}
    ids = {a.json()["id"] for a in [*answers, ask(0), ask(1)] if a.status_code != 409}
    assert len(ids) == 1


def test_every_sample_that_a_query_asks_for_is_exposed(cluster: Cluster) -> None:
    """By running processes after a job; rules, dashboard and autoscaler ask for nothing else."""
    with cluster.client() as client:
        path = f"/jobs/{post(client, 6).json()['id']}"
        until(lambda: client.get(path).json()["status"] == "succeeded", what="the job's end")
    urls = [f"{one.url}/metrics" for one in (*cluster.apis, *cluster.workers)]
    pages = [httpx.get(url, timeout=90).text for url in urls]
    there = exposed(pages)
    for query in QUERIES.values():
        for name, labels in named_values(query).items():
            if name in RECORDED or name in ONLY_ON_A_GPU:
                continue
            assert name in there, f"{name} has no sample"
            wanted = {label for label in labels if label[0] not in TARGET_LABELS}
            assert wanted <= there[name], f"{name} has no {wanted}"
    stages = {
        sample.labels["stage"]
        for sample in samples(pages)
        if sample.name == "imageprompt_stage_seconds_count" and sample.value
    }
    assert stages == set(STAGES)


def test_each_job_is_counted_by_one_process(cluster: Cluster) -> None:
    def counted() -> float:
        urls = [f"{one.url}/metrics" for one in (*cluster.apis, *cluster.workers)]
        return sum(
            sample.value
            for sample in samples(httpx.get(url, timeout=90).text for url in urls)
            if sample.name == "imageprompt_jobs_total" and sample.labels["status"] == "succeeded"
        )

    with redis_client(str(cluster.service.settings["redis_url"])) as redis:

        def ended() -> int:
            states = [redis.hget(key, "status") for key in redis.scan_iter(redis_keys.job("*"))]
            return states.count("succeeded")

        until(lambda: ended() and counted() == ended(), seconds=60, what="the same number of jobs")


def test_links_in_answers_lead_through_the_load_balancer(cluster: Cluster) -> None:
    with cluster.client() as client:
        answer = post(client, 4)
        assert answer.headers["location"].startswith(cluster.balancer.url)
        assert client.get(answer.headers["location"]).json()["id"] == answer.json()["id"]


def test_events_arrive_one_by_one_and_go_on_at_another_replica(cluster: Cluster) -> None:
    """A stream that breaks off is resumed elsewhere with Last-Event-ID: nothing twice, no gap."""
    with cluster.client() as client:
        job_id = post(client, 5).json()["id"]
        path = f"/jobs/{job_id}/events"
        with client.stream("GET", path) as stream:
            whole = list(events(stream))
        assert whole[-1]["event"] == "done"
        broken_at = whole[len(whole) // 2]["id"]
        rests = []
        for api in cluster.apis:
            after = {"Last-Event-ID": broken_at}
            with httpx.stream("GET", api.url + path, headers=after, timeout=90) as rest:
                rests.append([event["id"] for event in events(rest)])
        assert rests[0] == rests[1] == [e["id"] for e in whole[len(whole) // 2 + 1 :]]


def test_a_large_upload_is_refused_by_the_api_and_not_by_the_proxy(cluster: Cluster) -> None:
    too_large = b"x" * (21 * 2**20)
    with cluster.client() as client:
        answer = client.post("/generate", files={"image": ("a.png", too_large, "image/png")})
    assert answer.status_code == 413
    assert answer.json()["type"] == "urn:imageprompt:error:too-large"


@dataclass
class Load:
    """Clients that go on until told to stop, and what happened to them."""

    cluster: Cluster
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    sent: int = 0
    failed: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    resumed: int = 0

    def ask(self, client: httpx.Client, method: str, path: str, **options: Any) -> Any:
        """One request, counted; `None` where it failed."""
        with self.lock:
            self.sent += 1
        try:
            answer = client.request(method, path, **options)
        except httpx.HTTPError as error:
            answer = None
            cause = repr(error)
        else:
            if answer.status_code < 400:
                return answer
            cause = f"{answer.status_code} {answer.text[:300]}"
        with self.lock:
            self.failed.append(f"{method} {path}: {cause}")
        return None

    def run(self, number: int) -> None:
        """Post and follow jobs: by polling, by events or by `Prefer: wait`, in turn."""
        turn = 0
        with self.cluster.client() as client:
            while not self.stop.is_set():
                turn += 1
                how = ("poll", "events", "wait")[(number + turn) % 3]
                files = {"image": ("a.png", picture(number * 40 + turn), "image/png")}
                headers = {"Prefer": "wait=60"} if how == "wait" else {}
                answer = self.ask(
                    client, "POST", "/generate", files=files, data={"steps": "3"}, headers=headers
                )
                if answer is None:
                    continue
                if how == "events":
                    self.follow(client, answer.json()["id"])
                self.finish(client, answer.json()["id"])

    def follow(self, client: httpx.Client, job_id: str) -> None:
        """Read the events to the end, resuming where a replica went away."""
        seen: list[str] = []
        names: list[str] = []
        while "done" not in names:
            headers = {"Last-Event-ID": seen[-1]} if seen else {}
            with self.lock:
                self.sent += 1
                self.resumed += bool(seen)
            with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as stream:
                if stream.status_code != httpx.codes.OK:
                    with self.lock:
                        self.failed.append(f"events of {job_id}: {stream.status_code}")
                    return
                for event in events(stream):
                    seen.append(event["id"])
                    names.append(event["event"])
        assert len(seen) == len(set(seen)), "an event came twice"

    def finish(self, client: httpx.Client, job_id: str) -> None:
        """Poll to the job's end and fetch its picture."""

        def ended() -> Any:
            answer = self.ask(client, "GET", f"/jobs/{job_id}")
            return answer if answer is not None and answer.json()["status"] in FINAL else None

        job = until(ended, seconds=PATIENCE, what=f"the end of {job_id}").json()
        with self.lock:
            self.ends[job["status"]] += 1
        if job["status"] == "succeeded":
            self.ask(client, "GET", f"/jobs/{job_id}/images/0")


def test_replacing_everything_under_load_drops_nothing(cluster: Cluster) -> None:
    """New APIs come in and old ones leave one by one; then the workers. No client notices."""
    load = Load(cluster)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(load.run, number) for number in range(CLIENTS)]
        try:
            until(
                lambda: load.ends["succeeded"] >= CLIENTS,
                seconds=PATIENCE,
                what="some finished jobs",
            )
            new_workers = [cluster.new_worker() for _ in cluster.workers]
            for old in list(cluster.apis):
                new = cluster.new_api()
                cluster.apis = [api for api in cluster.apis if api is not old] + [new]
                cluster.balancer.send_to(*(api.url for api in cluster.apis))
                time.sleep(PAUSE_SECONDS)
                processes.end(old.process, grace_seconds=PATIENCE)
            for worker in new_workers:
                worker.wait("/healthz/ready", seconds=PATIENCE)
            for worker in cluster.workers:
                ended = processes.end(worker.process, grace_seconds=PATIENCE)
                assert ended == 0, worker.tail()
            cluster.workers = new_workers
            before = sum(load.ends.values())
            until(
                lambda: sum(load.ends.values()) >= before + CLIENTS,
                seconds=PATIENCE,
                what="jobs after it",
            )
        finally:
            load.stop.set()
        for client in clients:
            client.result()
    lost = sum(load.ends.values()) - load.ends["succeeded"]
    print(  # noqa: T201  figures for docs/reliability.md
        f"\nrolling restart: {load.sent} requests sent, {len(load.failed)} failed, "
        f"{sum(load.ends.values())} jobs, {lost} lost, {load.resumed} event streams resumed"
    )
    assert load.failed == []
    assert lost == 0
