"""The Grafana dashboard asks for metrics and tags that the code has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ray.util import metrics as ray_metrics

from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.serving.metrics import ReplicaObserver

DASHBOARD = Path(__file__).resolve().parents[3] / "configs" / "grafana" / "inference.json"
# What Prometheus calls the series of each kind of metric.
SUFFIXES = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}


@pytest.fixture
def series(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """Each series that a replica exports, with its tags."""
    made: dict[str, tuple[str, ...]] = {}

    def noting(kind: type) -> type:
        class Noting(kind):
            def __init__(self, name: str, *arguments, tag_keys: tuple[str, ...], **options) -> None:
                super().__init__(name, *arguments, tag_keys=tag_keys, **options)
                made.update({f"ray_{name}{suffix}": tag_keys for suffix in SUFFIXES[kind.__name__]})

        return Noting

    for kind in SUFFIXES:
        monkeypatch.setattr(ray_metrics, kind, noting(getattr(ray_metrics, kind)))
    ReplicaObserver(TrafficRecorder(), application="embeddings")
    return made


def test_every_query_is_for_metrics_and_tags_that_there_are(series):
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    assert len(queries) > 10
    for query in queries:
        names = re.findall(r"ray_\w+", query)
        assert names
        for name in names:
            assert name in series
            assert set(re.findall(r"(\w+)(?:=~|!=)", query)) <= set(series[name])


def test_every_metric_is_shown(series):
    shown = set(re.findall(r"ray_\w+", DASHBOARD.read_text()))
    missing = {re.sub("_(bucket|sum|count)$", "", name) for name in series} - {
        re.sub("_(bucket|sum|count)$", "", name) for name in shown
    }
    assert missing == set()
