"""The registry's state machine, without Ray and without a store."""

from __future__ import annotations

import pytest

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import (
    InvalidWeightsError,
    ModelBusyError,
    ModelNotDeployedError,
    ModelNotFoundError,
    QuotaExceededError,
    VersionExistsError,
)
from mixpeek_ray.core.records import (
    ArchiveContents,
    DeploymentStatus,
    ModelFormat,
    ModelManifest,
    ResourceRequest,
)
from mixpeek_ray.registry.state import ModelCatalog, ModelKey, now

CONTENTS = ArchiveContents(files=(), tensor_count=2, parameter_count=10, dtypes=("float32",), weights_bytes=40)


def make_manifest(name: str = "model", *, namespace_id: str = "ns_a", sha256: str = "aa") -> ModelManifest:
    return ModelManifest(
        namespace_id=namespace_id,
        model_id=f"{name}_1_0_0",
        name=name,
        version="1.0.0",
        model_format=ModelFormat.PYTORCH,
        framework=None,
        task_type=None,
        resources=ResourceRequest(),
        archive_sha256=sha256,
        archive_bytes=10,
        created_at=now(),
        contents=CONTENTS,
    )


def key_of(manifest: ModelManifest) -> ModelKey:
    return ModelKey(namespace_id=manifest.namespace_id, model_id=manifest.model_id)


@pytest.fixture
def catalog() -> ModelCatalog:
    return ModelCatalog()


@pytest.fixture
def key(catalog: ModelCatalog) -> ModelKey:
    manifest = make_manifest()
    catalog.created(manifest)
    return key_of(manifest)


def test_a_namespace_sees_its_own_models_only_newest_first(catalog: ModelCatalog) -> None:
    for name in ("first", "second"):
        catalog.created(make_manifest(name))
    catalog.created(make_manifest("other", namespace_id="ns_b"))
    assert [state.manifest.name for state in catalog.models("ns_a")] == ["second", "first"]


def test_the_51st_model_is_refused_and_a_delete_makes_room(catalog: ModelCatalog) -> None:
    manifests = [make_manifest(f"m{number}") for number in range(limits.MAX_MODELS_PER_NAMESPACE)]
    for manifest in manifests:
        catalog.reserve(key_of(manifest))
        catalog.created(manifest)
    with pytest.raises(QuotaExceededError):
        catalog.reserve(ModelKey(namespace_id="ns_a", model_id="one-more_1_0_0"))
    catalog.admit("ns_b")
    catalog.deleted(key_of(manifests[0]))
    catalog.reserve(ModelKey(namespace_id="ns_a", model_id="one-more_1_0_0"))


def test_places_reserved_by_uploads_under_way_count(catalog: ModelCatalog) -> None:
    keys = [ModelKey(namespace_id="ns_a", model_id=str(number)) for number in range(51)]
    for key in keys[:50]:
        catalog.reserve(key)
    with pytest.raises(QuotaExceededError):
        catalog.reserve(keys[50])
    catalog.release(keys[0])
    catalog.reserve(keys[50])


def test_the_same_bytes_are_the_same_version_and_other_bytes_conflict(catalog: ModelCatalog, key: ModelKey) -> None:
    assert catalog.existing(key, "aa") is catalog.get(key)
    with pytest.raises(VersionExistsError):
        catalog.existing(key, "bb")
    assert catalog.existing(ModelKey(namespace_id="ns_b", model_id=key.model_id), "bb") is None


def test_a_deploy_goes_pending_then_deployed_then_back(catalog: ModelCatalog, key: ModelKey) -> None:
    attempt = catalog.begin_deploy(key)
    assert catalog.get(key).status is DeploymentStatus.PENDING
    assert catalog.is_current(key, attempt)
    catalog.deployed(key, CONTENTS)
    assert catalog.get(key).status is DeploymentStatus.DEPLOYED
    assert catalog.get(key).deployed_at is not None
    catalog.undeployed(key)
    assert catalog.get(key).status is DeploymentStatus.NOT_DEPLOYED
    assert catalog.get(key).deployed_at is None


def test_a_late_result_of_an_ended_attempt_does_not_count(catalog: ModelCatalog, key: ModelKey) -> None:
    first = catalog.begin_deploy(key)
    catalog.undeployed(key)
    assert not catalog.is_current(key, first)
    second = catalog.begin_deploy(key)
    assert catalog.is_current(key, second)
    catalog.begin_delete(key)
    assert not catalog.is_current(key, second)


def test_a_failure_keeps_its_reason_until_the_next_deploy(catalog: ModelCatalog, key: ModelKey) -> None:
    catalog.begin_deploy(key)
    catalog.failed(key, InvalidWeightsError("the header lies"))
    state = catalog.get(key)
    assert (state.status, state.failure_code) == (DeploymentStatus.FAILED, "invalid_weights")
    with pytest.raises(ModelNotDeployedError, match="the header lies"):
        catalog.check_loadable(key)
    catalog.begin_deploy(key)
    assert catalog.get(key).failure_code is None


def test_only_deployed_or_pending_models_load(catalog: ModelCatalog, key: ModelKey) -> None:
    with pytest.raises(ModelNotDeployedError, match="not deployed"):
        catalog.check_loadable(key)
    catalog.begin_deploy(key)
    catalog.check_loadable(key)
    with pytest.raises(ModelNotFoundError):
        catalog.check_loadable(ModelKey(namespace_id="ns_b", model_id=key.model_id))


def test_a_model_being_deleted_is_closed_to_everything(catalog: ModelCatalog, key: ModelKey) -> None:
    catalog.begin_delete(key)
    for operation in (
        catalog.begin_deploy,
        catalog.undeployed,
        catalog.begin_delete,
        catalog.check_open,
        catalog.check_loadable,
        lambda closed: catalog.existing(closed, "aa"),
    ):
        with pytest.raises(ModelBusyError):
            operation(key)
    catalog.deleted(key)
    with pytest.raises(ModelNotFoundError):
        catalog.get(key)


def test_a_delete_that_failed_can_be_repeated(catalog: ModelCatalog, key: ModelKey) -> None:
    catalog.begin_delete(key)
    catalog.abandon_delete(key)
    assert catalog.get(key).status is DeploymentStatus.NOT_DEPLOYED
    catalog.begin_delete(key)


def test_an_archive_is_referenced_as_long_as_one_version_is_made_of_it(catalog: ModelCatalog) -> None:
    first, second = make_manifest("first"), make_manifest("second", namespace_id="ns_b")
    catalog.created(first)
    catalog.created(second)
    catalog.deleted(key_of(first))
    assert catalog.references("aa")
    catalog.deleted(key_of(second))
    assert not catalog.references("aa")


def test_only_the_current_attempt_reports_its_progress(catalog: ModelCatalog, key: ModelKey) -> None:
    first = catalog.begin_deploy(key)
    catalog.progressed(key, first, 7)
    assert catalog.get(key).bytes_done == 7
    catalog.undeployed(key)
    second = catalog.begin_deploy(key)
    catalog.progressed(key, first, 9)
    assert catalog.get(key).bytes_done == 0
    catalog.progressed(key, second, 3)
    assert catalog.get(key).bytes_done == 3
    catalog.progressed(ModelKey(namespace_id="ns_a", model_id="gone_1_0_0"), 1, 5)
