"""What goes into the metrics: names that exist, as many as there may be, and each request once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import OTHER, UNKNOWN
from mixpeek_ray.batching.observer import Request
from mixpeek_ray.serving.metrics import ReplicaObserver


class Exported:
    """Stands where Ray takes a metric over."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()

    def note(self, value: float, tags: dict[str, str]) -> None:
        self.values[tuple(sorted(tags.values()))] += value


@pytest.fixture
def exported(monkeypatch) -> Exported:
    return Exported()


@pytest.fixture
def observer(exported, monkeypatch) -> ReplicaObserver:
    made = ReplicaObserver(TrafficRecorder(), application="embeddings")
    monkeypatch.setattr(made._requests, "inc", exported.note)
    return made


def ended(model: str | None, code: str = "") -> Request:
    status = 429 if code else 200
    return Request(organization_id="org", model=model, items=1, tokens=1, latency_s=0.1, status=status, error_code=code)


def test_each_request_is_exported_once_by_outcome(observer, exported):
    for request in (ended("m"), ended("m"), ended("m", "overloaded"), ended(None, "model_not_found")):
        observer.answered(request)
    observer.export()
    observer.export()
    assert exported.values == {
        ("m", "ok"): 2, ("m", "overloaded"): 1, tuple(sorted((UNKNOWN, "model_not_found"))): 1
    }  # fmt: skip


def test_models_beyond_the_bound_share_one_name(observer, exported):
    for number in range(250):
        observer.answered(ended(f"ns_a/m_{number}_0_0"))
    observer.export()
    assert len(exported.values) == 201
    assert exported.values[OTHER, "ok"] == 50


def test_shadow_requests_are_no_requests(observer, exported, monkeypatch):
    shadows = Exported()
    monkeypatch.setattr(observer._shadow_requests, "inc", shadows.note)
    for request in (ended("m"), replace(ended("m"), is_shadow=True), replace(ended("m", "overloaded"), is_shadow=True)):
        observer.answered(request)
    observer.shadow_dropped("m")
    observer.export()
    observer.export()
    assert exported.values == {("m", "ok"): 1}
    assert shadows.values == {("m", "ok"): 1, ("m", "overloaded"): 1, tuple(sorted(("m", "dropped"))): 1}
