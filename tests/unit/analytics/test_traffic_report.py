"""What is told of traffic: by model and version, and over time."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import TrafficKey
from mixpeek_ray.analytics.report import Grouping, performance_by_model, performance_over_time

# A Wednesday.
NOON = datetime(2026, 4, 15, 12, 30, 40, tzinfo=UTC)


def rows_of(*requests: tuple[str | None, int, str, float], at: datetime = NOON):
    recorder = TrafficRecorder(clock=at.timestamp)
    for model, status, code, latency_s in requests:
        key = TrafficKey.of("org_a", model, status, code)
        recorder.record(key, latency_s=latency_s, items=2, tokens=10)
    return recorder.drain()


def test_counts_are_exact_and_quantiles_within_two_percent_of_the_same_latencies():
    source = random.Random(7)
    latencies = sorted(source.lognormvariate(-4, 1) for _ in range(5_000))
    shuffled = source.sample(latencies, len(latencies))
    rows = rows_of(
        *(("ns_a/m_1_0_0", 200, "", latency) for latency in shuffled),
        *[("ns_a/m_1_0_0", 429, "overloaded", 0.0)] * 30,
        *[("ns_a/m_1_0_0", 500, "internal_error", 9.0)] * 20,
    )
    (model,) = performance_by_model(rows, window_s=100.0)
    assert (model.requests, model.errors, model.server_errors) == (5_050, 50, 20)
    assert model.error_codes == {"overloaded": 30, "internal_error": 20}
    assert (model.items, model.tokens, model.latencies.count) == (10_000, 50_000, 5_000)
    assert model.latencies.mean_s == pytest.approx(sum(latencies) / 5_000)
    assert model.latencies.max_s == latencies[-1]
    for found, fraction in ((model.latencies.p50_s, 0.5), (model.latencies.p95_s, 0.95), (model.latencies.p99_s, 0.99)):
        assert found == pytest.approx(latencies[round(5_000 * fraction) - 1], rel=0.02)


def test_versions_are_told_apart_and_found_by_name_or_id():
    one, two = ("ns_a/m_1_0_0", 200, "", 0.1), ("ns_a/m_2_0_0", 200, "", 0.1)
    rows = rows_of(one, two, two, ("bge-m3", 200, "", 0.1), (None, 404, "model_not_found", 0.1))

    def ids(model_name: str | None) -> list[str]:
        return [found.model_id for found in performance_by_model(rows, window_s=1.0, model_name=model_name)]

    assert ids(None) == ["m_2_0_0", "(unknown)", "bge-m3", "m_1_0_0"]
    assert ids("m") == ["m_2_0_0", "m_1_0_0"]
    assert ids("m_1_0_0") == ids("ns_a/m_1_0_0") == ["m_1_0_0"]
    assert ids("bge-m3") == ["bge-m3"]
    assert ids("nobody") == []


@pytest.mark.parametrize(
    ("grouping", "began"),
    [
        (Grouping.MINUTE, datetime(2026, 4, 15, 12, 30, tzinfo=UTC)),
        (Grouping.HOUR, datetime(2026, 4, 15, 12, tzinfo=UTC)),
        (Grouping.DAY, datetime(2026, 4, 15, tzinfo=UTC)),
        (Grouping.WEEK, datetime(2026, 4, 13, tzinfo=UTC)),
        (Grouping.MONTH, datetime(2026, 4, 1, tzinfo=UTC)),
    ],
)
def test_time_is_divided_as_it_was_asked_for(grouping, began):
    earlier = datetime(2026, 3, 1, tzinfo=UTC)
    rows = rows_of(("m", 200, "", 0.1), ("n", 200, "", 0.3), ("n", 503, "unavailable", 9.0))
    told = performance_over_time(
        [*rows, *rows_of(("m", 200, "", 0.2), at=earlier)], start=earlier, end=NOON, grouping=grouping
    )
    assert [bucket.latencies.count for bucket in told.buckets] == [1, 2]
    assert told.buckets[1].began_at == began
    assert told.buckets[1].latencies.max_s == 0.3
    assert told.total.count == 3
    assert told.total.mean_s == pytest.approx(0.2)


def test_shadow_requests_are_told_apart_and_are_no_answers():
    recorder = TrafficRecorder(clock=NOON.timestamp)
    for is_shadow, count in ((False, 3), (True, 2)):
        for _ in range(count):
            key = TrafficKey.of("org_a", "ns_a/m_1_0_0", 200, "", is_shadow=is_shadow)
            recorder.record(key, latency_s=0.1, items=1, tokens=1)
    rows = recorder.drain()
    told = performance_by_model(rows, window_s=1.0)
    assert [(model.is_shadow, model.requests) for model in told] == [(False, 3), (True, 2)]
    assert performance_over_time(rows, start=NOON, end=NOON, grouping=Grouping.HOUR).total.count == 3
