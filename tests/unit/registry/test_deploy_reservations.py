"""What a deploy reserves while it brings a model's weights in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from custom_models import custom_model

from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.placement import PoolLimit
from mixpeek_ray.core.records import DeploymentStatus, ResourceRequest
from mixpeek_ray.registry import deployer as deployer_module
from mixpeek_ray.registry.deployer import Deployer
from mixpeek_ray.registry.locks import KeyedLocks
from mixpeek_ray.registry.materialize import MaterializedRefs
from mixpeek_ray.registry.state import ModelCatalog, ModelKey
from mixpeek_ray.store.memory_store import MemoryStore
from mixpeek_ray.store.records import RecordStore

KEY = ModelKey(namespace_id="ns_acme", model_id="mine_1_0_0")
LIMIT = PoolLimit(num_cpus=1.0, memory_bytes=4 * GIB)


@pytest.mark.parametrize(
    ("resources", "reserved"),
    [
        (ResourceRequest(), ResourceRequest()),
        # Its own replica may hold all that there is, and wait for these very weights.
        (ResourceRequest(num_gpus=1), None),
        (ResourceRequest(num_cpus=2.0), None),
    ],
)
def test_weights_of_a_model_with_an_application_of_its_own_wait_for_no_room(
    monkeypatch: pytest.MonkeyPatch, resources: ResourceRequest, reserved: ResourceRequest | None
) -> None:
    submitted: list[Any] = []

    async def run() -> None:
        state = custom_model()
        catalog = ModelCatalog()
        catalog.created(replace(state.manifest, resources=resources))
        records = RecordStore(MemoryStore())
        deployer = Deployer(catalog, records, KeyedLocks(), store_url="memory://", spool_dir=None, pool_limit=LIMIT)

        def submit(job: Any, asked: ResourceRequest | None, *, name: str) -> MaterializedRefs:
            submitted.append(asked)
            deployer.begun(KEY, job.attempt)
            contents: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            contents.set_result(state.manifest.contents)
            return MaterializedRefs(contents=contents, weights=None, companions=None)

        monkeypatch.setattr(deployer_module.materialize, "submit", submit)
        monkeypatch.setattr(deployer_module, "check_capacity", lambda *_, **__: None)
        await deployer.deploy(KEY)
        await deployer.wait(KEY, 30)
        assert catalog.get(KEY).status is DeploymentStatus.DEPLOYED

    asyncio.run(run())
    assert submitted == [reserved]
