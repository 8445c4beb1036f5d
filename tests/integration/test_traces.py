"""A collector sees one trace from a client's span through API and queue to a worker's stages."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter", reason="the extra `otel` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.running import until
from tests.stack import Service, picture

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SPANS = {"POST /generate", "queue", "generate", "encode", "denoise", "decode", "upload"}


class Collector:
    """Takes OTLP over HTTP and keeps (service name, span)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def take(self, body: bytes) -> None:
        """Keep the spans of one export."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(names["service.name"], span) for span in scope.spans]

    def of(self, trace_id: str) -> dict[str, tuple[str, Any]]:
        """The spans of one trace by their names."""
        return {s.name: (who, s) for who, s in self.spans if s.trace_id.hex() == trace_id}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


def test_one_trace_leads_from_the_client_to_the_worker(
    collector: Collector, make_service: Callable[..., Service]
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server.server_port}"
    service = make_service(
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="200"
    ).start()
    service.succeeded(service.submit(image=picture(7), headers={"traceparent": CALLER}))
    trace_id = CALLER.split("-")[1]
    until(lambda: collector.of(trace_id).keys() >= SPANS, what="every span of the job")
    spans = collector.of(trace_id)
    parents = {name: span.parent_span_id.hex() for name, (_, span) in spans.items()}
    ids = {name: span.span_id.hex() for name, (_, span) in spans.items()}
    assert parents["POST /generate"] == CALLER.split("-")[2]
    assert parents["queue"] == parents["generate"] == ids["POST /generate"]
    assert {parents[name] for name in ("encode", "denoise", "decode", "upload")} == {
        ids["generate"]
    }
    assert spans["POST /generate"][0] == "imageprompt-api"
    assert spans["denoise"][0] == "imageprompt-worker"
    for name in ("api.log", "worker-0.log"):
        log = service.folder / name
        until(lambda log=log: trace_id in log.read_text(), what=f"a line of {name} with the trace")
