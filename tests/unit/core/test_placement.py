"""Which models share the pool."""

from __future__ import annotations

from typing import Any

import pytest

from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.placement import PoolLimit
from mixpeek_ray.core.records import ResourceRequest
from mixpeek_ray.core.settings import Settings

LIMIT = PoolLimit(num_cpus=1.0, memory_bytes=4 * GIB)


def test_a_model_uploaded_without_a_word_goes_to_the_pool() -> None:
    assert Settings().pool_limit.takes(ResourceRequest())


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({}, True),
        ({"num_cpus": 0.1, "memory_bytes": GIB}, True),
        ({"num_cpus": 1.01}, False),
        ({"num_cpus": 64.0}, False),
        ({"num_gpus": 1}, False),
        ({"num_cpus": 0.1, "num_gpus": 8, "memory_bytes": GIB}, False),
        ({"memory_bytes": 4 * GIB + 1}, False),
    ],
)
def test_whoever_asks_for_more_has_an_application_of_its_own(asked: dict[str, Any], fits: bool) -> None:
    assert LIMIT.takes(ResourceRequest(**asked)) is fits


def test_the_bound_is_the_operators_to_set() -> None:
    limit = Settings(pool_max_cpus=2.5, pool_max_memory_gb=0.5).pool_limit
    assert limit == PoolLimit(num_cpus=2.5, memory_bytes=GIB // 2)
