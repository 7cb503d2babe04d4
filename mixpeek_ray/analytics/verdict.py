"""Whether a version that is being rolled out does worse than it may. Pure."""

from __future__ import annotations

from mixpeek_ray.analytics.recent import RecentRequests
from mixpeek_ray.core.alias_options import RollbackGuard


def fault_of(guard: RollbackGuard, newest: RecentRequests, others: RecentRequests) -> str | None:
    """Return why the newest version must go, in a few words for its users; None while nothing speaks against it.

    Errors are compared once it has ``min_requests``, latencies once the others have as many answers too.
    """
    if newest.requests < guard.min_requests:
        return None
    return _errors(guard, newest, others) or _latency(guard, newest, others)


def _errors(guard: RollbackGuard, newest: RecentRequests, others: RecentRequests) -> str | None:
    if guard.max_error_rate is None:
        return None
    # Callers' own errors meet all versions alike, so what is left is the version's.
    found, usual = _error_rate(newest), _error_rate(others)
    if found <= usual + guard.max_error_rate:
        return None
    return (
        f"{found:.1%} of its {newest.requests} requests failed, and {usual:.1%} of the others' {others.requests}: "
        f"more than {guard.max_error_rate:.1%} apart"
    )


def _latency(guard: RollbackGuard, newest: RecentRequests, others: RecentRequests) -> str | None:
    if guard.max_latency_ratio is None:
        return None
    if min(_answers(newest), _answers(others)) < guard.min_requests:
        return None
    if newest.median_s <= others.median_s * guard.max_latency_ratio:
        return None
    return (
        f"its median latency is {newest.median_s * 1_000:.1f} ms, and the others' {others.median_s * 1_000:.1f} ms: "
        f"more than {guard.max_latency_ratio:g} times as long"
    )


def _answers(side: RecentRequests) -> int:
    return side.requests - side.errors


def _error_rate(side: RecentRequests) -> float:
    return side.errors / side.requests if side.requests else 0.0
