"""The last hour in memory: each report once, by version, and no more of it than there may be."""

from __future__ import annotations

import pytest

from mixpeek_ray.analytics import recent
from mixpeek_ray.analytics.recent import RecentTraffic
from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import TrafficBatch, TrafficKey

NOW = 1_800_000_000.0


@pytest.fixture
def traffic() -> RecentTraffic:
    return RecentTraffic(clock=lambda: NOW)


def batch(
    *requests: tuple[str | None, int, float], source: str = "a", sequence: int = 1, since_s: float = NOW - 100,
    is_shadow: bool = False,
) -> TrafficBatch:  # fmt: skip
    recorder = TrafficRecorder(clock=lambda: NOW)
    for model, status, latency_s in requests:
        code = "" if status < 400 else "code"
        key = TrafficKey.of("org", model, status, code, is_shadow=is_shadow)
        recorder.record(key, latency_s=latency_s, items=1, tokens=1)
    return TrafficBatch(source=source, sequence=sequence, rows=recorder.drain(), since_s=since_s)


def counts(traffic: RecentTraffic, *model_ids: str, since_s: float = NOW - 200) -> tuple[int, int]:
    found = traffic.count("ns_a", model_ids or ("m_1_0_0",), since_s=since_s)
    return found.requests, found.errors


def test_versions_are_added_up_over_replicas_and_reports(traffic):
    ok, failed = ("ns_a/m_1_0_0", 200, 0.1), ("ns_a/m_1_0_0", 503, 9.0)
    traffic.add(batch(ok, ok, failed, ("ns_a/m_2_0_0", 200, 0.3)))
    traffic.add(batch(ok, source="b"))
    traffic.add(batch(ok, sequence=2, since_s=NOW - 50))
    assert counts(traffic) == (5, 1)
    assert counts(traffic, "m_1_0_0", "m_2_0_0") == (6, 1)
    assert counts(traffic, "m_3_0_0") == (0, 0)
    assert traffic.count("ns_a", ["m_1_0_0"], since_s=0).median_s == pytest.approx(0.1, rel=0.02)
    assert traffic.count("ns_b", ["m_1_0_0"], since_s=0).requests == 0


def test_a_report_that_comes_again_is_counted_once(traffic):
    for _ in range(3):
        traffic.add(batch(("ns_a/m_1_0_0", 200, 0.1)))
    assert counts(traffic) == (1, 0)


def test_only_reports_that_began_later_count(traffic):
    traffic.add(batch(("ns_a/m_1_0_0", 200, 0.1), since_s=NOW - 100))
    traffic.add(batch(("ns_a/m_1_0_0", 503, 0.1), sequence=2, since_s=NOW - 90))
    assert counts(traffic, since_s=NOW - 100) == (2, 1)
    assert counts(traffic, since_s=NOW - 99) == (1, 1)
    assert counts(traffic, since_s=NOW - 89) == (0, 0)


def test_what_tells_nothing_of_a_version_is_left_out(traffic):
    traffic.add(batch(("ns_a/m_1_0_0", 499, 0.1), ("bge-m3", 200, 0.1), (None, 404, 0.1)))
    traffic.add(batch(("ns_a/m_1_0_0", 503, 0.1), sequence=2, is_shadow=True))
    assert counts(traffic) == (0, 0)


def test_memory_has_an_end(traffic, monkeypatch):
    monkeypatch.setattr(recent, "_MAX_CELLS", 10)
    monkeypatch.setattr(recent, "_MAX_SOURCES", 5)
    for number in range(50):
        traffic.add(batch(("ns_a/m_1_0_0", 200, 0.1), source=f"replica{number}", since_s=NOW - 1_000 + 5 * number))
    assert counts(traffic, since_s=0) == (10, 0)
    assert (traffic._cells, len(traffic._slots), len(traffic._sources)) == (10, 10, 5)
    traffic.add(batch(("ns_a/m_1_0_0", 200, 0.1), source="late", since_s=NOW - 3_700))
    traffic.add(batch(("ns_a/m_1_0_0", 200, 0.1), source="unknown", since_s=0.0))
    assert counts(traffic, since_s=0) == (10, 0)
