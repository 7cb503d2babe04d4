"""What an alias does beside answering: a version that computes in the shadow, a guard that takes a version back."""

from __future__ import annotations

from dataclasses import dataclass

# Of a guard: how far back the counts go at most. They are kept in memory.
MAX_WINDOW_MINUTES = 60


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """A version that also computes a share of an alias' requests, after their answers and apart from them."""

    model_id: str
    # Of the alias' requests: 1 to 100.
    percent: int

    def computes(self, answering_id: str, point: float) -> bool:
        """Tell whether it also computes what ``answering_id`` answered; ``point`` is random, 0 <= point < 1."""
        return answering_id != self.model_id and point * 100 < self.percent


@dataclass(frozen=True, kw_only=True)
class RollbackGuard:
    """How much worse than the others the newest of an alias' versions may do before it gets no more requests."""

    # How much larger its share of failed requests may be: 0.05 is five of a hundred. None: however large.
    max_error_rate: float | None = None
    # How many times as long its median latency may be; None: however long.
    max_latency_ratio: float | None = None
    # Before it has as many requests it is not judged, nor its latency before both sides have as many answers.
    min_requests: int = 100
    # How far back requests count, up to ``MAX_WINDOW_MINUTES``; never to before the alias was moved.
    window_minutes: int = 10
