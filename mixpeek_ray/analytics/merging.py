"""Fewer rows that say the same: equal ones as one, minutes as hours, rare models together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mixpeek_ray.analytics.histogram import LatencyHistogram
from mixpeek_ray.analytics.records import TrafficKey, TrafficRow

# Versions that are kept apart, for each organisation and namespace and file: what runs is far fewer.
MAX_MODELS = 200


@dataclass(slots=True)
class Sum:
    """Requests, or rows of them, being added up."""

    requests: int = 0
    items: int = 0
    tokens: int = 0
    latency_s: float = 0.0
    max_latency_s: float = 0.0
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)

    def add(self, row: TrafficRow) -> None:
        """Add one row."""
        self.requests += row.requests
        self.items += row.items
        self.tokens += row.tokens
        self.latency_s += row.latency_s
        self.max_latency_s = max(self.max_latency_s, row.max_latency_s)
        self.latencies.merge(row.latencies)

    def row(self, began_s: int, key: TrafficKey) -> TrafficRow:
        """Return the sum as one row."""
        return TrafficRow(
            began_s=began_s,
            key=key,
            requests=self.requests,
            items=self.items,
            tokens=self.tokens,
            latency_s=self.latency_s,
            max_latency_s=self.max_latency_s,
            latencies=self.latencies.items(),
        )


def merged(rows: Iterable[TrafficRow], *, period_s: int) -> list[TrafficRow]:
    """Return one row for each key and period of ``period_s`` seconds, the rarest models of a namespace as one."""
    rows = list(rows)
    rare = _rare(rows)
    sums: dict[tuple[int, TrafficKey], Sum] = {}
    for row in rows:
        key = row.key.without_model() if _model(row.key) in rare else row.key
        sums.setdefault((row.began_s - row.began_s % period_s, key), Sum()).add(row)
    return [total.row(began_s, key) for (began_s, key), total in sums.items()]


def _model(key: TrafficKey) -> tuple[str, str, str, str]:
    return key.organization_id, key.namespace_id, key.model_name, key.version


def _rare(rows: Iterable[TrafficRow]) -> set[tuple[str, str, str, str]]:
    requests: dict[tuple[str, str], Counter[tuple[str, str, str, str]]] = {}
    for row in rows:
        model = _model(row.key)
        requests.setdefault(model[:2], Counter())[model] += row.requests
    return {model for counts in requests.values() for model, _ in counts.most_common()[MAX_MODELS:]}
