"""When a guard takes a version back, and when it does not."""

from __future__ import annotations

import pytest

from mixpeek_ray.analytics.recent import RecentRequests
from mixpeek_ray.analytics.verdict import fault_of
from mixpeek_ray.core.alias_options import RollbackGuard


def side(requests: int, errors: int = 0, median_ms: float = 10.0) -> RecentRequests:
    return RecentRequests(requests=requests, errors=errors, median_s=median_ms / 1_000)


ERRORS = RollbackGuard(max_error_rate=0.05, min_requests=100)
LATENCY = RollbackGuard(max_latency_ratio=1.5, min_requests=100)
BOTH = RollbackGuard(max_error_rate=0.05, max_latency_ratio=1.5, min_requests=100)


@pytest.mark.parametrize(
    ("guard", "newest", "others"),
    [
        pytest.param(BOTH, side(0), side(0), id="no traffic"),
        pytest.param(BOTH, side(99, 99), side(1_000), id="too few requests"),
        pytest.param(ERRORS, side(100, 5), side(1_000), id="as many errors as it may have"),
        pytest.param(ERRORS, side(100, 14), side(1_000, 100), id="its callers' errors meet the others too"),
        pytest.param(ERRORS, side(100, 0, 500.0), side(1_000), id="latency is not watched"),
        pytest.param(LATENCY, side(100, 100, 0.0), side(1_000), id="errors are not watched"),
        pytest.param(LATENCY, side(200, 0, 15.0), side(1_000), id="as slow as it may be"),
        pytest.param(LATENCY, side(200, 0, 90.0), side(99), id="too few of the others to compare with"),
        pytest.param(LATENCY, side(200, 101, 90.0), side(1_000), id="too few answers"),
        pytest.param(LATENCY, side(200, 0, 90.0), side(1_000, 901), id="too few answers of the others"),
        pytest.param(BOTH, side(100, 0, 1.0), side(1_000, 500, 10.0), id="better than the others"),
    ],
)
def test_what_a_version_may_do(guard, newest, others):
    assert fault_of(guard, newest, others) is None


@pytest.mark.parametrize(
    ("guard", "newest", "others", "said"),
    [
        pytest.param(ERRORS, side(100, 6), side(1_000), "6.0% of its 100", id="errors"),
        pytest.param(ERRORS, side(100, 6), side(0), "6.0% of its 100", id="errors, with nobody to compare with"),
        pytest.param(ERRORS, side(100, 16), side(1_000, 100), "10.0% of the others' 1000", id="beyond the others"),
        pytest.param(BOTH, side(100, 100, 0.0), side(1_000), "100.0%", id="no answer at all"),
        pytest.param(LATENCY, side(100, 0, 15.1), side(100), "15.1 ms", id="latency"),
        pytest.param(BOTH, side(200, 5, 15.1), side(300), "more than 1.5 times", id="latency, errors in bounds"),
        pytest.param(LATENCY, side(100, 0, 0.5), side(100, 0, 0.0), "0.5 ms", id="others that take no time"),
    ],
)
def test_what_takes_it_back(guard, newest, others, said):
    assert said in (fault_of(guard, newest, others) or "")
