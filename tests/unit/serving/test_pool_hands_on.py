"""A replica of the pool hands a model on that does not fit it, and says what became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from custom_models import custom_model
from local_models import LocalKeys

from mixpeek_ray.core.errors import UnavailableError
from mixpeek_ray.core.records import DeploymentStatus, ModelState, ResourceRequest, TensorSignature
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.servables.base import (
    NamedArrays,
    OwnApplication,
    Parameters,
    ServableRef,
    ServableSpec,
    Task,
)
from mixpeek_ray.serving.counting import ReplicaCounts
from mixpeek_ray.serving.dedicated_models import RemoteModels
from mixpeek_ray.serving.pool_replica import PoolBounds, PoolReplica

pytestmark = pytest.mark.anyio

LARGE = ResourceRequest(num_gpus=1)
GIVEN = TensorSignature(name="given", dtype="int64", shape=("batch",))
SPEC = ServableSpec(task=Task.TENSORS, inputs=(GIVEN,), outputs=(GIVEN,))


class Registry:
    """One deployed model, as the registry's handle answers for it."""

    def __init__(self) -> None:
        self.status = DeploymentStatus.DEPLOYED
        self.get_model = self

    async def remote(self, organization_id: str, key: ModelKey) -> ModelState:
        """Answer as the registry's method."""
        state = custom_model("large", status=self.status)
        return replace(state, manifest=replace(state.manifest, resources=LARGE))


@dataclass
class Application:
    """What the model's own application does."""

    own: OwnApplication | None = None
    failure: Exception | None = None

    @asynccontextmanager
    async def use(self, ref: ServableRef, own: OwnApplication) -> AsyncIterator[Any]:
        self.own = own
        yield Remote(application=self, ref=ref)


@dataclass
class Remote:
    application: Application
    ref: ServableRef
    spec: ServableSpec = SPEC

    async def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        if self.application.failure is not None:
            raise self.application.failure
        return {"given": np.asarray(inputs["given"]) * 2}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> Application:
    made = Application()
    monkeypatch.setattr(RemoteModels, "use", lambda _, ref, own: made.use(ref, own))
    return made


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
async def client(registry: Registry, application: Application, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(analytics_flush_s=1e9, spool_dir=tmp_path)
    counts = ReplicaCounts(settings, registry, application="models")
    bounds = PoolBounds(max_models=10, max_private_bytes=10**9)
    replica = PoolReplica(settings, registry, LocalKeys(), counts, bounds)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app=replica.create_app())
    headers = {"Authorization": "Bearer sk_reader"}
    async with httpx.AsyncClient(transport=transport, base_url="http://models", headers=headers) as made:
        yield made


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/models/ns_acme/large_1_0_0", json={"inputs": [1, 2]})


async def test_its_own_application_computes(client: httpx.AsyncClient, application: Application) -> None:
    answer = await ask(client)
    assert answer.json() == {"outputs": {"given": [2, 4]}, "model": "ns_acme/large_1_0_0"}
    assert application.own is not None
    assert application.own.resources == LARGE
    ready = await client.get("/v2/models/ns_acme%2Flarge_1_0_0/ready")
    assert ready.status_code == 200


async def test_a_failure_is_told_as_it_is(client: httpx.AsyncClient, application: Application) -> None:
    application.failure = UnavailableError("No room.", retry_after_seconds=30)
    answer = await ask(client)
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "No room.")
    assert answer.headers["Retry-After"] == "30"


async def test_a_model_that_was_undeployed_meanwhile_is_no_failure(
    client: httpx.AsyncClient, application: Application, registry: Registry
) -> None:
    await ask(client)
    registry.status = DeploymentStatus.NOT_DEPLOYED
    application.failure = UnavailableError("It lost its application.")
    answer = await ask(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_not_deployed")
