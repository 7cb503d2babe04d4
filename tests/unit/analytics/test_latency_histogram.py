"""Quantiles of histograms, beside the exact ones of the same latencies."""

from __future__ import annotations

import math
import random

import pytest

from mixpeek_ray.analytics.histogram import RELATIVE_ERROR, LatencyHistogram

FRACTIONS = (0.0, 0.5, 0.95, 0.99, 1.0)
SHAPES = {
    "log-normal": lambda source: source.lognormvariate(-4, 1.5),
    "uniform": lambda source: source.uniform(1e-6, 10),
    "two modes": lambda source: source.gauss(0.005, 0.0002) if source.random() < 0.9 else source.gauss(1, 0.1),
    "constant": lambda _: 0.0123,
}


def exact(latencies: list[float], fraction: float) -> float:
    return sorted(latencies)[max(1, math.ceil(fraction * len(latencies))) - 1]


def of(latencies: list[float]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for latency in latencies:
        histogram.add(latency)
    return histogram


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 99, 10_000])
def test_quantiles_are_within_the_error_of_exact_ones(shape, count):
    source = random.Random(count)
    latencies = [SHAPES[shape](source) for _ in range(count)]
    found = of(latencies).quantiles(*FRACTIONS)
    for fraction, quantile in zip(FRACTIONS, found, strict=True):
        assert quantile == pytest.approx(exact(latencies, fraction), rel=RELATIVE_ERROR + 1e-9)


def test_merged_histograms_are_the_histogram_of_all():
    source = random.Random(1)
    parts = [[source.expovariate(10) for _ in range(500)] for _ in range(4)]
    whole = LatencyHistogram()
    for part in parts:
        whole.merge(of(part).items())
    assert whole.items() == of([latency for part in parts for latency in part]).items()


def test_memory_has_an_end_whatever_is_added():
    histogram = of([10.0**exponent for exponent in range(-30, 30)] + [0.0])
    buckets = [bucket for bucket, _ in histogram.items()]
    assert 0 <= min(buckets) <= max(buckets) <= 1_101
    assert histogram.quantiles(0.0, 1.0) == pytest.approx((1e-6, 3_600), rel=0.02)


def test_an_empty_one_has_no_latency():
    assert LatencyHistogram().quantiles(0.5, 0.99) == (0.0, 0.0)
