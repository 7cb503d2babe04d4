"""Counting in a replica: a lock and a few additions a request, in memory that has an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mixpeek_ray.analytics.merging import Sum
from mixpeek_ray.analytics.records import TrafficKey, TrafficRow
from mixpeek_ray.core.logs import get_logger

_log = get_logger(__name__)

MINUTE_S = 60
# Minutes x keys between two flushes, each up to a few KB. Beyond the first number, models are counted together; beyond
# the second, which only a flush that fails for long leads to, requests are not counted, and the log says so.
_MAX_CELLS, _MOST_CELLS = 4_096, 8_192


class TrafficRecorder:
    """Counts requests by minute and key until they are drained; any thread may use it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock``: seconds since 1970."""
        self._clock = clock
        self._lock = threading.Lock()
        self._cells: dict[tuple[int, TrafficKey], Sum] = {}
        self._lost = 0

    def record(self, key: TrafficKey, *, latency_s: float, items: int, tokens: int) -> None:
        """Count a request that ends now."""
        now_s = int(self._clock())
        minute_s = now_s - now_s % MINUTE_S
        with self._lock:
            cell = self._cells.get((minute_s, key)) or self._new_cell(minute_s, key)
            if cell is None:
                self._lost += 1
                return
            cell.requests += 1
            cell.items += items
            cell.tokens += tokens
            cell.latency_s += latency_s
            cell.max_latency_s = max(cell.max_latency_s, latency_s)
            cell.latencies.add(latency_s)

    def drain(self) -> tuple[TrafficRow, ...]:
        """Return what was counted since the last call, and forget it."""
        with self._lock:
            cells, self._cells = self._cells, {}
            lost, self._lost = self._lost, 0
        if lost:
            _log.warning("%d requests were not counted: analytics did not answer for too long", lost)
        return tuple(cell.row(minute_s, key) for (minute_s, key), cell in cells.items())

    def _new_cell(self, minute_s: int, key: TrafficKey) -> Sum | None:
        place = (minute_s, key)
        if len(self._cells) >= _MAX_CELLS:
            place = (minute_s, key.without_model())
        if place not in self._cells and len(self._cells) >= _MOST_CELLS:
            return None
        return self._cells.setdefault(place, Sum())
