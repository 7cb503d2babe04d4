"""Latencies in buckets whose borders grow by 2%: any quantile within 1%, in memory that has an end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

# A quantile is at most this far from a true latency at its rank, relatively.
RELATIVE_ERROR = 0.01
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GROWTH = math.log(_GROWTH)
# Seconds. Nothing here is computed faster than the lower border, and nobody waits longer than the upper one.
_SHORTEST_S, _LONGEST_S = 1e-6, 3_600.0
_LAST_BUCKET = math.ceil(math.log(_LONGEST_S / _SHORTEST_S) / _LOG_GROWTH)


class LatencyHistogram:
    """Counts of latencies by bucket: bucket i holds those up to 1 us x 1.0202^i. At most 1,101 buckets of 1 us to 1 h.

    Histograms add up without loss, so those of many replicas and minutes tell an hour's quantiles (DDSketch, Masson et
    al. 2019).
    """

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts: dict[int, int] = dict(counts or {})

    def add(self, latency_s: float) -> None:
        """Count one latency; one outside 1 us to 1 h as the nearest of the two."""
        bucket = math.ceil(math.log(latency_s / _SHORTEST_S) / _LOG_GROWTH) if latency_s > _SHORTEST_S else 0
        if bucket > _LAST_BUCKET:
            bucket = _LAST_BUCKET
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def merge(self, counts: Iterable[tuple[int, int]]) -> None:
        """Add another histogram's buckets and counts."""
        for bucket, count in counts:
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    def items(self) -> tuple[tuple[int, int], ...]:
        """Return buckets and counts, by bucket."""
        return tuple(sorted(self._counts.items()))

    def quantiles(self, *fractions: float) -> tuple[float, ...]:
        """Return the latency in seconds at each of the ascending ``fractions`` (nearest rank); 0.0 when it is empty."""
        total = sum(self._counts.values())
        if not total:
            return (0.0,) * len(fractions)
        found: list[float] = []
        seen = 0
        buckets = iter(self.items())
        bucket = 0
        for fraction in fractions:
            rank = max(1, math.ceil(fraction * total))
            while seen < rank:
                bucket, count = next(buckets)
                seen += count
            found.append(_middle(bucket))
        return tuple(found)


def _middle(bucket: int) -> float:
    # As far from the bucket's lower border as from its upper one, relatively.
    return _SHORTEST_S * _GROWTH**bucket * 2 / (_GROWTH + 1) if bucket else _SHORTEST_S
