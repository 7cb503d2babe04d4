"""A dedicated replica reserves what its model asked for, and a GPU is used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.dedicated import build
from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.records import ModelKind, ResourceRequest
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.servables.base import OwnApplication, ServableRef
from mixpeek_ray.serving import dedicated_replica
from mixpeek_ray.serving.counting import ReplicaCounts
from mixpeek_ray.serving.dedicated_replica import DedicatedReplica
from mixpeek_ray.serving.scaling import dedicated_options

ASKED = ResourceRequest(num_cpus=1.5, num_gpus=2, memory_bytes=3 * GIB)


def ref(resources: ResourceRequest) -> ServableRef:
    return ServableRef(
        namespace_id="ns_acme", model_id="one_1_0_0", version="1.0.0", kind=ModelKind.HUGGINGFACE, content="0" * 64,
        own=OwnApplication(name="model-ns_acme-one_1_0_0-0", resources=resources),
    )  # fmt: skip


def test_the_request_is_what_ray_reserves() -> None:
    deployment: Any = build(ref(ASKED), OwnApplication(name="model-one", resources=ASKED))._bound_deployment
    options = deployment.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"], options["memory"]) == (1.5, 2, 3 * GIB)


def test_it_sleeps_unless_somebody_asks_and_grows_to_the_bound() -> None:
    scaling = dedicated_options(ASKED, Settings(dedicated_max_replicas=7, model_idle_s=60.0))["autoscaling_config"]
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (0, 0, 7)
    assert scaling.downscale_delay_s == 60.0


@pytest.mark.parametrize(("num_gpus", "has_gpu", "device"), [(1, True, "cuda"), (1, False, None), (0, True, None)])
def test_the_model_goes_to_the_gpu_that_it_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_gpus: int, has_gpu: bool, device: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    chosen: list[str | None] = []

    class Opener(dedicated_replica.ServableOpener):
        def __init__(self, watch: Any, *, device: str | None = None) -> None:
            chosen.append(device)
            super().__init__(watch, device=device)

    monkeypatch.setattr(dedicated_replica, "ServableOpener", Opener)
    asked = ResourceRequest(num_gpus=num_gpus)

    async def make() -> None:
        settings = Settings(spool_dir=tmp_path)
        counts = ReplicaCounts(settings, None, application="dedicated")
        DedicatedReplica(ref(asked), OwnApplication(name="model-one", resources=asked), settings, None, counts)

    asyncio.run(make())
    assert chosen == [device]
