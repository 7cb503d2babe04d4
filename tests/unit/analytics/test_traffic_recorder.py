"""Counting in a replica: exact whoever counts at the same time, and bounded whoever calls."""

from __future__ import annotations

import threading

import pytest

from mixpeek_ray.analytics import recorder as recorder_module
from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import BUILTIN, OTHER, UNKNOWN, TrafficKey

ANSWERED = TrafficKey.of("org_a", "ns_a/my_model_1_2_3", 200, "")


def test_models_are_told_apart_by_namespace_name_and_version():
    assert (ANSWERED.namespace_id, ANSWERED.model_name, ANSWERED.version) == ("ns_a", "my_model", "1.2.3")
    assert ANSWERED.model_id == "my_model_1_2_3"
    builtin = TrafficKey.of("org_a", "bge-m3", 503, "overloaded")
    assert (builtin.namespace_id, builtin.model_id, builtin.version) == (BUILTIN, "bge-m3", "")
    assert builtin.is_error
    assert TrafficKey.of("org_a", None, 404, "model_not_found").model_name == UNKNOWN


def test_threads_lose_no_request():
    recorder = TrafficRecorder(clock=lambda: 90.0)

    def count() -> None:
        for _ in range(2_000):
            recorder.record(ANSWERED, latency_s=0.5, items=2, tokens=3)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = recorder.drain()
    assert (row.began_s, row.requests, row.items, row.tokens) == (60, 8_000, 16_000, 24_000)
    assert row.latency_s == pytest.approx(4_000)
    assert row.max_latency_s == 0.5
    assert sum(count for _, count in row.latencies) == 8_000
    assert recorder.drain() == ()


def test_each_minute_and_outcome_is_a_row():
    now_s = 60.0
    recorder = TrafficRecorder(clock=lambda: now_s)
    recorder.record(ANSWERED, latency_s=0.1, items=1, tokens=1)
    recorder.record(TrafficKey.of("org_a", "m", 429, "overloaded"), latency_s=0.1, items=1, tokens=0)
    now_s = 120.0
    recorder.record(ANSWERED, latency_s=0.1, items=1, tokens=1)
    assert sorted((row.began_s, row.key.status) for row in recorder.drain()) == [(60, 200), (60, 429), (120, 200)]


def test_too_many_models_are_counted_together_and_then_not_at_all(monkeypatch, caplog):
    monkeypatch.setattr(recorder_module, "_MAX_CELLS", 3)
    monkeypatch.setattr(recorder_module, "_MOST_CELLS", 4)
    monkeypatch.setattr(recorder_module._log, "propagate", True)
    monkeypatch.setattr(recorder_module._log.parent, "propagate", True)
    recorder = TrafficRecorder(clock=lambda: 0.0)
    for number in range(6):
        recorder.record(TrafficKey.of("org_a", f"m{number}", 200, ""), latency_s=0.1, items=1, tokens=1)
    recorder.record(TrafficKey.of("org_b", "m0", 200, ""), latency_s=0.1, items=1, tokens=1)
    rows = {row.key.model_name: row.requests for row in recorder.drain()}
    assert rows == {"m0": 1, "m1": 1, "m2": 1, OTHER: 3}
    assert "1 requests were not counted" in caplog.text
