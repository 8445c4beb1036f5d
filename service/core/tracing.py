"""OpenTelemetry traces of both sides: a request's span, and below it its job and the job's stages.

The API's part of OpenTelemetry is always there and does nothing by itself; spans are made and sent
where the extra `otel` is installed and OTEL_EXPORTER_OTLP_ENDPOINT is set. A job carries its
`traceparent` (W3C Trace Context) through the queue. It knows neither HTTP nor the engine.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.core.errors import ConfigurationError
from service.core.job import Job, JobMetrics

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
STAGES: Final = ("encode", "denoise", "decode", "upload")
"""The stages of a job on a worker, in their order."""

_PROPAGATOR: Final = TraceContextTextMapPropagator()


def configure(service_name: str) -> None:
    """Send this process's spans to the collector that the environment names, if it names one.

    Batches and time-outs are those of OpenTelemetry's own OTEL_* variables. Raises
    `ConfigurationError` where a collector is named and the extra `otel` is not installed.
    """
    if not os.environ.get(ENDPOINT):
        return
    if importlib.util.find_spec("opentelemetry.exporter") is None:
        raise ConfigurationError(f"{ENDPOINT} is set; install imageprompt[otel] for traces")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  the extra
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  the extra
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  the extra
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  the extra

    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def process_tracer() -> Tracer:
    """The tracer that `configure` set up for this process, or one that does nothing."""
    return trace.get_tracer("imageprompt")


def carried(headers: Mapping[str, str]) -> str | None:
    """The `traceparent` that a job of this request carries: of the current span, else the caller's.

    FastAPI makes the span of each request itself once a provider is set.
    """
    made = trace.get_current_span().get_span_context().is_valid
    sent = headers.get("traceparent")
    if not made and sent is None:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, None if made else _parent(sent))
    return carrier.get("traceparent")


def log_fields(parent: str | None) -> dict[str, str]:
    """What log lines carry of a `traceparent`: its trace id, 32 hex digits."""
    if parent is None:
        return {}
    context = trace.get_current_span(_parent(parent)).get_span_context()
    return {"trace_id": trace.format_trace_id(context.trace_id)} if context.is_valid else {}


def record_job(tracer: Tracer, job: Job, metrics: JobMetrics, status: str, ended_at: float) -> None:
    """Make the spans of a job that has ended: the wait, the job, and a span for each stage.

    The engine says how long a stage took, not when, since stages of many jobs overlap: the spans
    are laid out backwards from the end (Unix seconds), one before the other.
    """
    context = _parent(job.traceparent)
    started_at = job.started_at or job.created_at
    wait = tracer.start_span("queue", context, start_time=_nanoseconds(job.created_at))
    wait.end(_nanoseconds(started_at))
    span = tracer.start_span(
        "generate",
        context,
        kind=SpanKind.CONSUMER,
        start_time=_nanoseconds(started_at),
        attributes={
            "imageprompt.job.id": job.id,
            "imageprompt.job.status": status,
            "imageprompt.job.attempt": job.attempt,
            "imageprompt.model": job.request.model,
            "imageprompt.steps": job.request.steps,
            "imageprompt.max_batch": metrics.max_batch,
        },
    )
    if status == "failed":
        span.set_status(Status(StatusCode.ERROR))
    below = trace.set_span_in_context(span)
    end = ended_at
    for stage in reversed(STAGES):
        seconds = getattr(metrics, f"{stage}_seconds")
        if seconds > 0:
            part = tracer.start_span(stage, below, start_time=_nanoseconds(end - seconds))
            part.end(_nanoseconds(end))
            end -= seconds
    span.end(_nanoseconds(ended_at))


def _parent(value: str | None) -> Context:
    return _PROPAGATOR.extract({"traceparent": value} if value else {}, Context())


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
