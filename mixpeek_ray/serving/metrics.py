"""Metrics of a replica for Prometheus, exported by Ray; and the counts behind analytics."""

from __future__ import annotations

import threading
from collections import Counter

from ray.util import metrics

from mixpeek_ray.analytics.recorder import TrafficRecorder
from mixpeek_ray.analytics.records import OTHER, UNKNOWN, TrafficKey
from mixpeek_ray.batching.observer import Batch, Request
from mixpeek_ray.serving.tracing import annotate

# Seconds: from a small model's fastest answer to where callers give up, each border twice the last.
_LATENCIES_S = [0.001 * 2**power for power in range(15)]
_WAITS_S = [0.0005 * 2**power for power in range(15)]
_BATCH_ITEMS = [float(2**power) for power in range(11)]
# Series cost memory in every replica and in Prometheus; models beyond this many share one.
_MAX_MODELS = 200
_DROPPED = "dropped"
_NOT_OF_A_MODEL = {"model": UNKNOWN}


class ReplicaObserver:
    """Implements ``batching.observer.Observer``: counts for analytics and for Prometheus.

    A metric of Ray's costs about 5 us a call, so requests are added up, and exported with the gauges by ``export``; the
    rest of what is told here is told once a batch or a load, but for the latency.

    Tags: ``application``, ``model`` (only models that were found, at most 200; then ``(other)``), ``outcome`` (``ok``,
    or the error's code; of shadow requests also ``dropped``).
    """

    def __init__(self, recorder: TrafficRecorder, *, application: str) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._tags: dict[str, dict[str, str]] = {}
        # By model: bytes of weights viewed, and requests that waited when its last batch was taken.
        self._shared: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        # By model and outcome, since the last export; those of the shadow apart.
        self._ended: Counter[tuple[str, str]] = Counter()
        self._shadows: Counter[tuple[str, str]] = Counter()
        names, outcome = ("application", "model"), ("application", "model", "outcome")
        self._requests = metrics.Counter("mixpeek_requests", "Requests that ended, by outcome.", tag_keys=outcome)
        self._latency = metrics.Histogram(
            "mixpeek_request_latency_seconds", "Latency of answered requests.", boundaries=_LATENCIES_S, tag_keys=names
        )
        self._items = metrics.Histogram(
            "mixpeek_batch_items", "Items computed together.", boundaries=_BATCH_ITEMS, tag_keys=names
        )
        self._tokens = metrics.Counter("mixpeek_tokens", "Tokens computed.", tag_keys=names)
        self._wait = metrics.Histogram(
            "mixpeek_queue_wait_seconds",
            "How long a batch's longest-waiting request had waited.",
            boundaries=_WAITS_S,
            tag_keys=names,
        )
        self._waiting = metrics.Gauge(
            "mixpeek_queue_length", "Requests that wait for their first turn.", tag_keys=names
        )
        self._loads = metrics.Counter("mixpeek_model_loads", "Models that were loaded.", tag_keys=names)
        self._load_seconds = metrics.Counter("mixpeek_model_load_seconds", "Seconds spent on loading.", tag_keys=names)
        self._unloads = metrics.Counter("mixpeek_model_unloads", "Models that were let go.", tag_keys=names)
        self._bytes = metrics.Gauge("mixpeek_shared_bytes", "Bytes of weights viewed, not owned.", tag_keys=names)
        self._shadow_requests = metrics.Counter(
            "mixpeek_shadow_requests", "Requests that were computed for nobody, or dropped.", tag_keys=outcome
        )
        self._shadow_latency = metrics.Histogram(
            "mixpeek_shadow_latency_seconds",
            "Latency of requests that were computed for nobody.",
            boundaries=_LATENCIES_S,
            tag_keys=names,
        )
        for metric in (
            self._requests, self._latency, self._items, self._tokens, self._wait, self._waiting, self._loads,
            self._load_seconds, self._unloads, self._bytes, self._shadow_requests, self._shadow_latency,
        ):  # fmt: skip
            metric.set_default_tags({"application": application})

    def answered(self, request: Request) -> None:
        """Count a request, and describe it on its trace."""
        annotate(request)
        is_shadow = request.is_shadow
        key = TrafficKey.of(
            request.organization_id, request.model, request.status, request.error_code, is_shadow=is_shadow
        )
        self._recorder.record(key, latency_s=request.latency_s, items=request.items, tokens=request.tokens)
        tags = _NOT_OF_A_MODEL if request.model is None else self._tags_of(request.model)
        with self._lock:
            (self._shadows if is_shadow else self._ended)[tags["model"], request.error_code or "ok"] += 1
        if not key.is_error:
            (self._shadow_latency if is_shadow else self._latency).observe(request.latency_s, tags)

    def shadow_dropped(self, model: str) -> None:
        """Count a shadow request that was not computed."""
        tags = self._tags_of(model)
        with self._lock:
            self._shadows[tags["model"], _DROPPED] += 1

    def export(self) -> None:
        """Add the requests since the last call to Ray's metric, and tell what the gauges stand at.

        Ray forgets a gauge that is not set again, though what it measures stays as it is.
        """
        with self._lock:
            ended, self._ended = self._ended, Counter()
            shadows, self._shadows = self._shadows, Counter()
            lengths, shared = dict(self._lengths), dict(self._shared)
        for (model, outcome), count in ended.items():
            self._requests.inc(count, {"model": model, "outcome": outcome})
        for (model, outcome), count in shadows.items():
            self._shadow_requests.inc(count, {"model": model, "outcome": outcome})
        for model, waiting in lengths.items():
            self._waiting.set(waiting, {"model": model})
        for model, total_bytes in shared.items():
            self._bytes.set(total_bytes, {"model": model})

    def computed(self, batch: Batch) -> None:
        """Count a batch."""
        tags = self._tags_of(batch.model)
        self._items.observe(batch.items, tags)
        self._wait.observe(max(batch.waited_s, 0.0), tags)
        with self._lock:
            self._lengths[tags["model"]] = batch.waiting
        if batch.tokens:
            self._tokens.inc(batch.tokens, tags)

    def loaded(self, model: str, *, seconds: float, shared_bytes: int) -> None:
        """Count a load."""
        tags = self._tags_of(model)
        self._loads.inc(1, tags)
        self._load_seconds.inc(seconds, tags)
        self._share(tags, shared_bytes)

    def unloaded(self, model: str, *, shared_bytes: int) -> None:
        """Count an unload."""
        tags = self._tags_of(model)
        self._unloads.inc(1, tags)
        self._share(tags, -shared_bytes)

    def _share(self, tags: dict[str, str], more_bytes: int) -> None:
        with self._lock:
            self._shared[tags["model"]] = self._shared.get(tags["model"], 0) + more_bytes

    def _tags_of(self, model: str) -> dict[str, str]:
        known = self._tags.get(model)
        if known is not None:
            return known
        with self._lock:
            if len(self._tags) >= _MAX_MODELS:
                return {"model": OTHER}
            return self._tags.setdefault(model, {"model": model})
