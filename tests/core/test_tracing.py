"""A trace shows a request, the job that came of it and the stages in which its time went."""

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from service.core import tracing
from service.core.errors import ConfigurationError
from service.core.job import Job, JobMetrics, Status
from tests.requests import generate_request

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("test")


def job(traceparent: str | None = CALLER) -> Job:
    return Job(
        id="a",
        owner="anonymous",
        status=Status.PROCESSING,
        request=generate_request(),
        created_at=100.0,
        started_at=103.0,
        traceparent=traceparent,
        attempt=1,
    )


def named(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


def test_a_job_is_seen_as_its_wait_and_its_stages(
    tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    metrics = JobMetrics(
        encode_seconds=1, denoise_seconds=4, decode_seconds=0.5, upload_seconds=0.5, max_batch=6
    )
    tracing.record_job(tracer, job(), metrics, "succeeded", ended_at=110.0)
    found = named(spans)
    assert found.keys() == {"queue", "generate", *tracing.STAGES}
    assert seconds(found["queue"]) == (100, 103)
    assert seconds(found["generate"]) == (103, 110)
    assert [seconds(found[stage]) for stage in tracing.STAGES] == [
        (104, 105),
        (105, 109),
        (109, 109.5),
        (109.5, 110),
    ]
    assert {span.context.trace_id for span in found.values() if span.context} == {TRACE}
    whole = found["generate"]
    assert whole.context is not None
    for stage in tracing.STAGES:
        assert found[stage].parent is not None
        assert found[stage].parent.span_id == whole.context.span_id
    assert whole.attributes is not None
    assert whole.attributes["imageprompt.max_batch"] == 6


def test_a_job_without_a_caller_begins_a_trace_and_a_failed_one_is_marked(
    tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    tracing.record_job(tracer, job(None), JobMetrics(), "failed", ended_at=104.0)
    found = named(spans)
    assert found["generate"].parent is None
    assert not found["generate"].status.is_ok


@pytest.mark.parametrize("sent", [CALLER, "ff" + CALLER[2:], "nonsense", "00-" + "0" * 32, None])
def test_without_tracing_a_job_carries_what_its_caller_sent_if_it_is_well_formed(
    sent: str | None,
) -> None:
    headers = {"traceparent": sent} if sent else {}
    assert tracing.carried(headers) == (sent if sent == CALLER else None)


def test_with_tracing_a_job_hangs_below_the_span_of_its_request(tracer: Tracer) -> None:
    with tracer.start_as_current_span("POST /generate") as request:
        context = request.get_span_context()
        carried = tracing.carried({"traceparent": CALLER})
    assert carried is not None
    assert carried.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


def test_log_lines_carry_the_trace_id_alone() -> None:
    assert tracing.log_fields(CALLER) == {"trace_id": CALLER.split("-")[1]}
    assert tracing.log_fields(None) == {}


def test_a_collector_without_the_extra_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(tracing.ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="otel"):
        tracing.configure("test")
