"""From rows of traffic to what is told of them."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mixpeek_ray.analytics.merging import Sum
from mixpeek_ray.analytics.records import (
    EnginePerformance,
    Latencies,
    ModelPerformance,
    PerformanceBucket,
    TrafficKey,
    TrafficRow,
)

_FIRST_SERVER_ERROR = 500


class Grouping(enum.StrEnum):
    """How long a bucket of time is."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"

    def begin(self, began_s: int) -> datetime:
        """Return when the bucket of a moment (seconds since 1970) began, in UTC; weeks begin on Monday."""
        moment = datetime.fromtimestamp(began_s, UTC).replace(second=0, microsecond=0)
        if self is Grouping.MINUTE:
            return moment
        moment = moment.replace(minute=0)
        if self is Grouping.HOUR:
            return moment
        moment = moment.replace(hour=0)
        match self:
            case Grouping.WEEK:
                return moment - timedelta(days=moment.weekday())
            case Grouping.MONTH:
                return moment.replace(day=1)
        return moment


@dataclass(slots=True)
class _ModelSum:
    """One model's rows being added up: latencies of answers only, for a refusal takes no time."""

    answered: Sum = field(default_factory=Sum)
    errors: Counter[str] = field(default_factory=Counter)
    server_errors: int = 0

    def add(self, row: TrafficRow) -> None:
        if row.key.is_error:
            self.errors[row.key.error_code] += row.requests
            self.server_errors += row.requests if row.key.status >= _FIRST_SERVER_ERROR else 0
        else:
            self.answered.add(row)


def performance_by_model(
    rows: Iterable[TrafficRow], *, window_s: float, model_name: str | None = None
) -> tuple[ModelPerformance, ...]:
    """Return how each model and version did, the busiest first; its shadow requests by themselves.

    ``model_name``: only the versions of that name, or the one model of that id or ``{namespace}/{model_id}``.
    """
    sums: dict[tuple[str, str, str, bool], tuple[TrafficKey, _ModelSum]] = {}
    for row in rows:
        key = row.key
        if model_name is not None and model_name not in _names(key):
            continue
        model = (key.namespace_id, key.model_name, key.version, key.is_shadow)
        _, total = sums.setdefault(model, (key, _ModelSum()))
        total.add(row)
    told = [_performance(key, total, window_s) for key, total in sums.values()]
    return tuple(sorted(told, key=lambda model: (-model.requests, model.namespace_id, model.model_id, model.is_shadow)))


def performance_over_time(
    rows: Iterable[TrafficRow], *, start: datetime, end: datetime, grouping: Grouping
) -> EnginePerformance:
    """Return the latencies of all answered requests, for each bucket of time and in sum; without shadow requests."""
    total = Sum()
    buckets: dict[datetime, Sum] = {}
    for row in rows:
        if not row.key.is_error and not row.key.is_shadow:
            total.add(row)
            buckets.setdefault(grouping.begin(row.began_s), Sum()).add(row)
    return EnginePerformance(
        start=start,
        end=end,
        buckets=tuple(
            PerformanceBucket(began_at=began_at, latencies=_latencies(bucket))
            for began_at, bucket in sorted(buckets.items())
        ),
        total=_latencies(total),
    )


def _names(key: TrafficKey) -> tuple[str, str, str]:
    return key.model_name, key.model_id, f"{key.namespace_id}/{key.model_id}"


def _performance(key: TrafficKey, total: _ModelSum, window_s: float) -> ModelPerformance:
    errors = sum(total.errors.values())
    return ModelPerformance(
        namespace_id=key.namespace_id,
        model_name=key.model_name,
        model_id=key.model_id,
        version=key.version or None,
        is_shadow=key.is_shadow,
        requests=total.answered.requests + errors,
        errors=errors,
        error_codes=dict(total.errors),
        server_errors=total.server_errors,
        items=total.answered.items,
        tokens=total.answered.tokens,
        latencies=_latencies(total.answered),
        window_s=window_s,
    )


def _latencies(answered: Sum) -> Latencies:
    p50_s, p95_s, p99_s = answered.latencies.quantiles(0.5, 0.95, 0.99)
    return Latencies(
        count=answered.requests,
        mean_s=answered.latency_s / answered.requests if answered.requests else 0.0,
        p50_s=p50_s,
        p95_s=p95_s,
        p99_s=p99_s,
        max_s=answered.max_latency_s,
    )
