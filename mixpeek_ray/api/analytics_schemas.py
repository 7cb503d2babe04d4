"""What the analytics routes answer: the contract's fields, and how they are filled."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from mixpeek_ray.analytics.records import EnginePerformance, Latencies, ModelPerformance
from mixpeek_ray.api.schemas import Body

_MS = 1_000


class ModelPerformanceDocument(Body):
    """One version of a model. Latencies are those of answered requests, without the way to and from the client."""

    model_name: str
    model_id: str
    namespace_id: str | None = Field(description="Null for built-in models.")
    version: str | None = Field(description="Null for built-in models.")
    shadow: bool = Field(description="Requests that it computed for nobody: another version behind an alias answered.")
    requests: int
    errors: int
    error_rate: float
    error_codes: dict[str, int] = Field(description="Errors by code, among them the caller's own.")
    server_errors: int = Field(description="Errors with a status from 500 up.")
    items: int = Field(description="Texts or documents of answered requests.")
    tokens: int
    mean_latency_ms: float
    p50_latency_ms: float
    p95_latency_ms: float
    p99_latency_ms: float
    max_latency_ms: float
    requests_per_second: float = Field(description="Over the whole time that was asked for.")
    tokens_per_second: float


class TimeRange(Body):
    """From when, until when."""

    start: datetime
    end: datetime


class PerformanceMetric(Body):
    """The answered requests of one bucket of time."""

    time_bucket: datetime
    execution_count: int
    avg_latency_ms: float
    p50_latency_ms: float
    p95_latency_ms: float
    p99_latency_ms: float
    max_latency_ms: float


class PerformanceSummary(Body):
    """All answered requests."""

    total_executions: int
    avg_latency_ms: float
    p50_latency_ms: float
    p95_latency_ms: float
    p99_latency_ms: float
    max_latency_ms: float
    total_time_seconds: float


class EnginePerformanceResponse(Body):
    """How all models together did, over time."""

    time_range: TimeRange
    metrics: list[PerformanceMetric]
    summary: PerformanceSummary | None = None


def present_model_performance(model: ModelPerformance, *, builtin: str) -> ModelPerformanceDocument:
    """Return one model's figures; ``builtin``: the namespace that stands for none."""
    latencies = model.latencies
    return ModelPerformanceDocument(
        model_name=model.model_name,
        model_id=model.model_id,
        namespace_id=None if model.namespace_id == builtin else model.namespace_id,
        version=model.version,
        shadow=model.is_shadow,
        requests=model.requests,
        errors=model.errors,
        error_rate=model.errors / model.requests,
        error_codes=dict(model.error_codes),
        server_errors=model.server_errors,
        items=model.items,
        tokens=model.tokens,
        mean_latency_ms=latencies.mean_s * _MS,
        p50_latency_ms=latencies.p50_s * _MS,
        p95_latency_ms=latencies.p95_s * _MS,
        p99_latency_ms=latencies.p99_s * _MS,
        max_latency_ms=latencies.max_s * _MS,
        requests_per_second=model.requests / model.window_s,
        tokens_per_second=model.tokens / model.window_s,
    )


def present_engine_performance(performance: EnginePerformance) -> EnginePerformanceResponse:
    """Return the contract's answer."""
    total = performance.total
    return EnginePerformanceResponse(
        time_range=TimeRange(start=performance.start, end=performance.end),
        metrics=[
            PerformanceMetric(
                time_bucket=bucket.began_at,
                execution_count=bucket.latencies.count,
                avg_latency_ms=bucket.latencies.mean_s * _MS,
                **_quantiles(bucket.latencies),
            )
            for bucket in performance.buckets
        ],
        summary=PerformanceSummary(
            total_executions=total.count,
            avg_latency_ms=total.mean_s * _MS,
            total_time_seconds=total.mean_s * total.count,
            **_quantiles(total),
        ),
    )


def _quantiles(latencies: Latencies) -> dict[str, float]:
    return {
        "p50_latency_ms": latencies.p50_s * _MS,
        "p95_latency_ms": latencies.p95_s * _MS,
        "p99_latency_ms": latencies.p99_s * _MS,
        "max_latency_ms": latencies.max_s * _MS,
    }
