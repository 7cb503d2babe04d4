"""Whether a cluster can hold a model, by what its nodes say."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from mixpeek_ray.core.errors import InsufficientCapacityError
from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.records import ResourceRequest
from mixpeek_ray.registry import capacity
from mixpeek_ray.registry.capacity import check_capacity, missing_now

SMALL = {"CPU": 4.0, "memory": 8.0 * GIB, "object_store_memory": 2.0 * GIB}
WITH_GPU = {"CPU": 2.0, "GPU": 1.0, "memory": 8.0 * GIB, "object_store_memory": 2.0 * GIB}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = [
        {"Alive": True, "Resources": SMALL},
        {"Alive": True, "Resources": WITH_GPU},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0, "memory": 900.0 * GIB}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: found)


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_gpus": 2}, "GPU: 2 needed, 1 on the largest node"),
        ({"num_cpus": 5.0}, "CPU: 5 needed, 4 on the largest node"),
        ({"num_gpus": 2, "num_cpus": 5.0}, "CPU: 5 needed, 4 on the largest node; GPU: 2 needed"),
        ({"num_gpus": 1, "num_cpus": 3.0}, "no node has all of it together"),
    ],
)
def test_a_deploy_that_no_node_could_ever_hold_is_told_what_is_missing(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InsufficientCapacityError) as caught:
        check_capacity(ResourceRequest(**asked), weights_bytes=GIB)
    assert said in caught.value.message
    assert caught.value.status == 507


@pytest.mark.usefixtures("nodes")
def test_one_node_that_has_all_of_it_is_enough() -> None:
    check_capacity(ResourceRequest(num_cpus=4.0), weights_bytes=GIB)
    check_capacity(ResourceRequest(num_gpus=1), weights_bytes=GIB)


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ([{"CPU": 0.4, "memory": 8.0 * GIB}], "CPU: 2 needed, 0.4 free"),
        ([{"CPU": 2.0, "memory": 8.0 * GIB}], None),
        ([], "CPU: 2 needed, 0 free; memory: 4 GiB needed, 0 GiB free"),
    ],
)
def test_what_no_node_has_free(monkeypatch: pytest.MonkeyPatch, free: list[dict[str, float]], said: str | None) -> None:
    by_node = {str(number): node for number, node in enumerate(free)}
    monkeypatch.setattr(capacity, "available_resources_per_node", lambda: by_node)
    assert missing_now(ResourceRequest(num_cpus=2.0)) == said
