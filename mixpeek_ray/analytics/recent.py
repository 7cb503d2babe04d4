"""The last hour's requests by version, in memory: what a version is judged by while it is being rolled out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mixpeek_ray.analytics.histogram import LatencyHistogram
from mixpeek_ray.analytics.records import TrafficBatch, TrafficRow
from mixpeek_ray.core.alias_options import MAX_WINDOW_MINUTES

# About as often as replicas report.
_SLOT_S = 5
_KEPT_S = MAX_WINDOW_MINUTES * 60
# Slots x versions, each up to 2 KB: beyond, the oldest slots go.
_MAX_CELLS = 50_000
# Replicas are remembered by their last batch; those that were heard of first are forgotten first.
_MAX_SOURCES = 10_000
# The status of requests whose callers left: they tell nothing of the model.
_CALLER_LEFT = 499


@dataclass(frozen=True, kw_only=True)
class RecentRequests:
    """The requests to some versions in a time, without those whose callers left."""

    requests: int
    errors: int
    # Of answers, in seconds; 0.0 without one.
    median_s: float


@dataclass(slots=True)
class _Cell:
    requests: int = 0
    errors: int = 0
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)

    def add(self, row: TrafficRow) -> None:
        self.requests += row.requests
        if row.key.is_error:
            self.errors += row.requests
        else:
            self.latencies.merge(row.latencies)

    def merge(self, other: _Cell) -> None:
        self.requests += other.requests
        self.errors += other.errors
        self.latencies.merge(other.latencies.items())


class RecentTraffic:
    """Adds up what replicas report, by version and five seconds. Not from several threads at a time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock``: seconds since 1970."""
        self._clock = clock
        # By the second that a slot's reports begin from; then by namespace and model id.
        self._slots: dict[int, dict[tuple[str, str], _Cell]] = {}
        self._cells = 0
        self._sources: dict[str, int] = {}

    def add(self, batch: TrafficBatch) -> None:
        """Count a batch; one that comes again is counted once. Shadow requests are not counted."""
        if batch.sequence <= self._sources.get(batch.source, 0):
            return
        self._sources[batch.source] = batch.sequence
        if len(self._sources) > _MAX_SOURCES:
            del self._sources[next(iter(self._sources))]
        slot = self._slots.setdefault(int(batch.since_s) // _SLOT_S * _SLOT_S, {})
        for row in batch.rows:
            key = row.key
            if key.version and not key.is_shadow and key.status != _CALLER_LEFT:
                version = (key.namespace_id, key.model_id)
                self._cells += version not in slot
                slot.setdefault(version, _Cell()).add(row)
        self._forget()

    def count(self, namespace_id: str, model_ids: Iterable[str], *, since_s: float) -> RecentRequests:
        """Return the requests to these versions together that ended after ``since_s``, seconds since 1970.

        A replica's report, of a few seconds, counts as a whole or not at all: when it begins after ``since_s``.
        """
        versions = [(namespace_id, model_id) for model_id in model_ids]
        total = _Cell()
        for slot_s, slot in self._slots.items():
            if slot_s >= since_s:
                for version in versions:
                    if (cell := slot.get(version)) is not None:
                        total.merge(cell)
        (median_s,) = total.latencies.quantiles(0.5)
        return RecentRequests(requests=total.requests, errors=total.errors, median_s=median_s)

    def _forget(self) -> None:
        oldest_s = self._clock() - _KEPT_S
        for slot_s in sorted(self._slots):
            if slot_s >= oldest_s and self._cells <= _MAX_CELLS:
                return
            self._cells -= len(self._slots.pop(slot_s))
