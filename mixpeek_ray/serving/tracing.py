"""OpenTelemetry traces: Serve makes the spans, we say where they go and what a request was about."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from mixpeek_ray.batching.observer import Request
from mixpeek_ray.core.settings import get_settings


def span_processors() -> list[SpanProcessor]:
    """Return what sends spans to ``MIXPEEK_OTLP_ENDPOINT``, or where OpenTelemetry's own variables say.

    Serve calls it in each of its processes: the name is the value of ``RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH``.
    """
    return [BatchSpanProcessor(OTLPSpanExporter(endpoint=get_settings().otlp_endpoint))]


def annotate(request: Request) -> None:
    """Say on the request's span, where it has one, which model answered and how; never a text, and never a key."""
    span = trace.get_current_span()
    # A request in the shadow is computed beside the one that is answered: the span is of that one.
    if request.is_shadow or not span.is_recording():
        return
    span.set_attributes(
        {
            "mixpeek.organization_id": request.organization_id,
            "mixpeek.model": request.model or "",
            "mixpeek.items": request.items,
            "mixpeek.tokens": request.tokens,
            "http.response.status_code": request.status,
            "error.type": request.error_code,
        }
    )
