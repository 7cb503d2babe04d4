"""What makes Serve's applications equal to what the registry says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.placement import PoolLimit
from mixpeek_ray.core.records import (
    ArchiveContents,
    DeploymentStatus,
    ModelFormat,
    ModelKind,
    ModelManifest,
    ModelState,
    ResourceRequest,
)
from mixpeek_ray.serving.dedicated_plan import Change, Plan
from mixpeek_ray.serving.placement import APPLICATION_PREFIX, DedicatedModels

LIMIT = PoolLimit(num_cpus=1.0, memory_bytes=4 * GIB)
LARGE = ResourceRequest(num_cpus=2.0)
OTHERS = frozenset({"gateway", "models", "someone-elses"})
GRACE_S = 5.0


def state(
    model_id: str = "one_1_0_0",
    *,
    status: DeploymentStatus = DeploymentStatus.DEPLOYED,
    resources: ResourceRequest = LARGE,
    kind: ModelKind = ModelKind.ONNX,
    **changes: Any,
) -> ModelState:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    manifest = ModelManifest(
        namespace_id="ns_acme", model_id=model_id, name="one", version="1.0.0", model_format=ModelFormat.ONNX,
        framework=None, task_type=None, resources=resources, archive_sha256="0" * 64, archive_bytes=9, created_at=at,
        contents=None,
    )  # fmt: skip
    contents = ArchiveContents(
        files=(), tensor_count=1, parameter_count=1, dtypes=("float32",), weights_bytes=4, kind=kind
    )
    manifest = replace(manifest, **changes)
    return ModelState(manifest=manifest, status=status, updated_at=at, contents=contents)


def models(*states: ModelState) -> DedicatedModels:
    return DedicatedModels.of(states, LIMIT)


def name_of(one: ModelState) -> str:
    (name,) = models(replace(one, status=DeploymentStatus.DEPLOYED)).deployed
    return name


@pytest.fixture
def plan() -> Plan:
    return Plan(grace_s=GRACE_S)


@pytest.mark.parametrize(
    "other",
    [
        state(resources=ResourceRequest()),
        state(status=DeploymentStatus.NOT_DEPLOYED),
        state(status=DeploymentStatus.FAILED),
        state(kind=ModelKind.STATE_DICT),
    ],
)
def test_who_needs_no_application(other: ModelState) -> None:
    assert models(other) == DedicatedModels(deployed={}, kept=frozenset())


def test_an_application_knows_its_model_and_what_a_replica_reserves() -> None:
    ((name, ref),) = models(state()).deployed.items()
    assert name.startswith(f"{APPLICATION_PREFIX}ns_acme-one_1_0_0-")
    assert ref.own is not None
    assert (ref.own.name, ref.own.resources, ref.content) == (name, LARGE, "0" * 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"archive_sha256": "1" * 64},
        {"task_type": "classification"},
        {"resources": replace(LARGE, num_gpus=1)},
        {"resources": replace(LARGE, memory_bytes=GIB)},
        {"model_id": "one_1_0_1"},
        {"namespace_id": "ns_acm", "model_id": "e-one_1_0_0"},
    ],
)
def test_whatever_a_replica_depends_on_makes_it_another_application(changes: dict[str, Any]) -> None:
    assert name_of(replace(state(), manifest=replace(state().manifest, **changes))) != name_of(state())


def test_what_is_missing_is_started_and_what_runs_is_let_be(plan: Plan) -> None:
    wanted = models(state(), state("two_1_0_0"))
    first, second = wanted.deployed.values()
    assert plan.change(wanted, OTHERS, 0.0) == Change(start=(first, second))
    assert plan.change(wanted, OTHERS | {name_of(state())}, 0.0) == Change(start=(second,))
    assert plan.change(wanted, OTHERS | wanted.deployed.keys(), 1_000.0) == Change()


def test_what_is_not_deployed_goes_when_its_last_users_have_heard(plan: Plan) -> None:
    running = OTHERS | {name_of(state())}
    assert plan.change(models(), running, 100.0) == Change()
    assert plan.change(models(), running, 100.0 + GRACE_S - 0.1) == Change()
    assert plan.change(models(), running, 100.0 + GRACE_S) == Change(delete=(name_of(state()),))


def test_a_redeploy_in_time_keeps_it(plan: Plan) -> None:
    running = {name_of(state())}
    plan.change(models(), running, 0.0)
    assert plan.change(models(state()), running, 3.0) == Change()
    # From now on the time counts anew.
    assert plan.change(models(), running, 6.0) == Change()
    assert plan.change(models(), running, 6.0 + GRACE_S).delete == tuple(running)


def test_a_model_on_its_way_back_keeps_its_application_and_gets_none(plan: Plan) -> None:
    coming = models(state(status=DeploymentStatus.PENDING))
    assert plan.change(coming, {name_of(state())}, 0.0) == Change()
    assert plan.change(coming, {name_of(state())}, 1_000.0) == Change()
    assert plan.change(coming, OTHERS, 1_000.0) == Change()


def test_other_contents_are_another_application_beside_the_old_one(plan: Plan) -> None:
    old, new = state(), state(archive_sha256="1" * 64)
    change = plan.change(models(new), {name_of(old)}, 0.0)
    assert (len(change.start), change.delete) == (1, ())
    assert plan.change(models(new), {name_of(old), name_of(new)}, GRACE_S) == Change(delete=(name_of(old),))


def test_applications_of_others_are_never_touched(plan: Plan) -> None:
    plan.change(models(), OTHERS, 0.0)
    assert plan.change(models(), OTHERS, 1_000.0) == Change()
