"""Counting the crashes of models, over a real record store."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from mixpeek_ray.core.crashes import ModelCrash
from mixpeek_ray.core.errors import ModelNotDeployedError, ModelQuarantinedError
from mixpeek_ray.core.records import (
    ArchiveContents,
    DeploymentMarker,
    DeploymentStatus,
    ModelFormat,
    ModelManifest,
    ResourceRequest,
)
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.deployer import Deployer
from mixpeek_ray.registry.locks import KeyedLocks
from mixpeek_ray.registry.parts import _resume
from mixpeek_ray.registry.quarantine import Quarantine
from mixpeek_ray.registry.state import ModelCatalog, ModelKey, now
from mixpeek_ray.store.memory_store import MemoryStore
from mixpeek_ray.store.records import RecordStore

CONTENTS = ArchiveContents(files=(), tensor_count=1, parameter_count=1, dtypes=("float32",), weights_bytes=4)
CONTENT = "ab" * 32
KEY = ModelKey(namespace_id="ns_a", model_id="model_1_0_0")


class Registry:
    """The parts that quarantine needs, on records that outlive them."""

    def __init__(self, records: RecordStore) -> None:
        self.catalog, self.records = ModelCatalog(), records
        locks = KeyedLocks()
        limit = Settings().pool_limit
        self.deployer = Deployer(self.catalog, records, locks, store_url="memory://", spool_dir=None, pool_limit=limit)
        self.quarantine = Quarantine(self.catalog, records, locks, self.deployer)
        self.catalog.created(
            ModelManifest(
                namespace_id=KEY.namespace_id,
                model_id=KEY.model_id,
                name="model",
                version="1.0.0",
                model_format=ModelFormat.ONNX,
                framework=None,
                task_type=None,
                resources=ResourceRequest(),
                archive_sha256=CONTENT,
                archive_bytes=10,
                created_at=now(),
                contents=CONTENTS,
            )
        )

    def deploy(self) -> None:
        marker = DeploymentMarker(namespace_id=KEY.namespace_id, model_id=KEY.model_id, requested_at=now())
        self.records.put_deployment(marker)
        self.catalog.begin_deploy(KEY)
        self.catalog.deployed(KEY, CONTENTS)

    def report(self, crash: ModelCrash, *, content: str = CONTENT, key: ModelKey = KEY) -> None:
        asyncio.run(self.quarantine.report(key, content, crash))

    @property
    def crashes(self) -> int:
        (marker,) = self.records.load_deployments().records
        return len(marker.crashes)

    @property
    def status(self) -> DeploymentStatus:
        return self.catalog.get(KEY).status


@pytest.fixture
def registry() -> Registry:
    made = Registry(RecordStore(MemoryStore()))
    made.deploy()
    return made


def crash(crash_id: str, *, age_s: float = 0.0) -> ModelCrash:
    return ModelCrash(crash_id=crash_id, at=now() - timedelta(seconds=age_s), reason="Segmentation fault")


def test_the_second_crash_takes_a_model_out_of_service_and_says_why(registry: Registry) -> None:
    registry.report(crash("first"))
    assert registry.status is DeploymentStatus.DEPLOYED
    registry.catalog.check_loadable(KEY)
    registry.report(crash("second"))
    state = registry.catalog.get(KEY)
    assert (state.status, state.failure_code) == (DeploymentStatus.FAILED, "model_quarantined")
    assert state.failure_message is not None
    assert "2 times" in state.failure_message
    assert "Segmentation fault" in state.failure_message
    with pytest.raises(ModelQuarantinedError, match="Segmentation fault"):
        registry.catalog.check_loadable(KEY)


def test_a_crash_that_is_told_twice_counts_once(registry: Registry) -> None:
    for _ in range(3):
        registry.report(crash("the same"))
    assert (registry.crashes, registry.status) == (1, DeploymentStatus.DEPLOYED)


def test_crashes_of_another_archive_or_an_earlier_deployment_do_not_count(registry: Registry) -> None:
    registry.report(crash("first"), content="cd" * 32)
    registry.report(crash("second", age_s=60))
    registry.report(crash("third"), key=ModelKey(namespace_id="ns_a", model_id="gone_1_0_0"))
    assert registry.crashes == 0


def test_a_restart_forgets_neither_the_count_nor_the_quarantine(registry: Registry) -> None:
    registry.report(crash("first"))
    again = Registry(registry.records)
    again.catalog.begin_deploy(KEY)
    # Also while the model is on its way back.
    again.report(crash("second"))
    assert again.status is DeploymentStatus.FAILED
    third = Registry(registry.records)
    _resume(third.records, third.deployer, third.quarantine)
    assert third.catalog.get(KEY).failure_code == "model_quarantined"
    assert not third.deployer.is_coming_back(KEY)


def test_a_deploy_that_a_quarantine_ends_changes_nothing_later(registry: Registry) -> None:
    attempt = registry.catalog.begin_deploy(KEY)
    registry.report(crash("first"))
    registry.report(crash("second"))
    assert not registry.catalog.is_current(KEY, attempt)


@pytest.mark.parametrize("undeployed", [True, False])
def test_a_deploy_begins_a_new_count(registry: Registry, undeployed: bool) -> None:
    registry.report(crash("first"))
    registry.report(crash("second"))
    if undeployed:
        asyncio.run(registry.deployer.undeploy(KEY))
        with pytest.raises(ModelNotDeployedError) as refusal:
            registry.catalog.check_loadable(KEY)
        assert not isinstance(refusal.value, ModelQuarantinedError)
    registry.deploy()
    registry.catalog.check_loadable(KEY)
    registry.report(crash("third"))
    assert (registry.crashes, registry.status) == (1, DeploymentStatus.DEPLOYED)
