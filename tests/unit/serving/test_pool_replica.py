"""A replica of the pool over a registry that is none: which version behind an alias answers, and what is counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from custom_models import custom_model
from local_models import OWNERS, LocalKeys
from waiting import until

from mixpeek_ray.core.alias_options import Shadow
from mixpeek_ray.core.aliases import AliasRef, AliasRoute, WeightedTarget
from mixpeek_ray.core.errors import (
    AliasNotFoundError,
    InvalidWeightsError,
    ModelNotFoundError,
    NamespaceNotFoundError,
    ValidationError,
)
from mixpeek_ray.core.ids import model_id
from mixpeek_ray.core.records import DeploymentStatus, ModelState, TensorSignature
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.servables.base import InProcess, NamedArrays, Parameters, ServableRef, ServableSpec, Task
from mixpeek_ray.servables.pool import LoadedServable
from mixpeek_ray.serving.counting import ReplicaCounts
from mixpeek_ray.serving.opening import ServableOpener
from mixpeek_ray.serving.pool_replica import PoolBounds, PoolReplica

pytestmark = pytest.mark.anyio

V1, V2 = "m_1_0_0", "m_2_0_0"
REF = AliasRef(namespace_id="ns_acme", name="m", alias="production")
ENDPOINT, PROTOCOL = "/models/ns_acme/m@production", "/v2/models/ns_acme%2Fm@production"
TENSORS = {"inputs": [{"name": "given", "datatype": "INT64", "shape": [3], "data": [1, 2, 3]}]}


class Adding(InProcess):
    """Adds its version's first number to each row."""

    def __init__(self, ref: ServableRef, gate: threading.Event) -> None:
        self._gate = gate
        self._more = int(ref.version[0])
        signature = TensorSignature(name="given", dtype="int64", shape=("batch",))
        self.spec = ServableSpec(task=Task.TENSORS, inputs=(signature,), outputs=(replace(signature, name="made"),))

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        if not self._gate.wait(30):
            raise TimeoutError
        if (inputs["given"] < 0).any():
            raise ValidationError("No negative numbers.", field="inputs.given")
        return {"made": inputs["given"] + self._more}


class Method:
    """A method of an actor's handle."""

    def __init__(self, answer: Callable[..., Awaitable[Any]]) -> None:
        self.remote = answer


class Registry:
    """Two versions of a model and an alias, as the registry's handle answers for them; also the analytics actor's."""

    def __init__(self) -> None:
        self.targets = {V2: 0, V1: 1}
        self.shadow: Shadow | None = None
        self.shadowed: Counter[tuple[str, str]] = Counter()
        self.deployed = {V1, V2}
        self.broken: set[str] = set()
        self.gates = {V1: threading.Event(), V2: threading.Event()}
        for gate in self.gates.values():
            gate.set()
        self.counted: Counter[tuple[str, str, int]] = Counter()
        self.items = 0
        self.get_model, self.alias_route = Method(self._get_model), Method(self._alias_route)
        self.add = Method(self._add)

    async def _get_model(self, organization_id: str, key: ModelKey) -> ModelState:
        self._check(organization_id, key.namespace_id)
        if key.model_id not in (V1, V2):
            raise ModelNotFoundError("There is no such model.")
        status = DeploymentStatus.DEPLOYED if key.model_id in self.deployed else DeploymentStatus.NOT_DEPLOYED
        state = custom_model("m", status=status)
        version = key.model_id.removeprefix("m_").replace("_", ".")
        assert model_id("m", version) == key.model_id
        return replace(state, manifest=replace(state.manifest, version=version, model_id=key.model_id))

    async def _alias_route(self, organization_id: str, ref: AliasRef) -> AliasRoute:
        self._check(organization_id, ref.namespace_id)
        if ref != REF:
            raise AliasNotFoundError("There is no such alias.")
        targets = tuple(WeightedTarget(model_id=model, weight=weight) for model, weight in self.targets.items())
        return AliasRoute(targets=targets, shadow=self.shadow)

    async def _add(self, batch: Any) -> None:
        for row in batch.rows:
            if row.key.is_shadow:
                self.shadowed[row.key.model_id, row.key.error_code] += row.requests
                continue
            self.counted[row.key.model_id, row.key.error_code, row.key.status] += row.requests
            self.items += row.items

    def load(self, ref: ServableRef) -> LoadedServable:
        if ref.model_id in self.broken:
            raise InvalidWeightsError("It cannot be opened.")
        return LoadedServable(servable=Adding(ref, self.gates[ref.model_id]), shared_bytes=8)

    def _check(self, organization_id: str, namespace_id: str) -> None:
        if OWNERS.get(namespace_id) != organization_id:
            raise NamespaceNotFoundError("There is no such namespace in your organization.")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr(ServableOpener, "open", lambda _, ref: registry.load(ref))
    return registry


@pytest.fixture
async def replica(registry: Registry) -> AsyncIterator[PoolReplica]:
    settings = Settings(analytics_flush_s=1e9)
    counts = ReplicaCounts(settings, registry, application="models")
    bounds = PoolBounds(max_models=10, max_private_bytes=10**9)
    made = PoolReplica(settings, registry, LocalKeys(), counts, bounds)  # type: ignore[arg-type]
    yield made
    await made.close()
    await made._pool.close()


@pytest.fixture
async def client(replica: PoolReplica) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=replica.create_app())
    headers = {"Authorization": "Bearer sk_reader"}
    async with httpx.AsyncClient(transport=transport, base_url="http://models", headers=headers) as made:
        yield made


async def ask(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post(ENDPOINT, json={"inputs": [1, 2, 3]}, headers=headers)


async def test_the_version_behind_the_alias_answers(client: httpx.AsyncClient, registry: Registry) -> None:
    answer = await ask(client)
    assert answer.json() == {"outputs": {"made": [2, 3, 4]}, "model": "ns_acme/m_1_0_0"}
    assert answer.headers["X-Mixpeek-Model"] == V1
    inferred = (await client.post(f"{PROTOCOL}/infer", json=TENSORS)).json()
    assert (inferred["model_name"], inferred["model_version"]) == ("ns_acme/m_1_0_0", "1.0.0")
    by_id = await client.post("/models/ns_acme/m_2_0_0", json={"inputs": [1]})
    assert (by_id.json()["outputs"], by_id.headers["X-Mixpeek-Model"]) == ({"made": [3]}, V2)


async def test_shares_are_the_weights_and_sticky_callers_stay(client: httpx.AsyncClient, registry: Registry) -> None:
    registry.targets = {V2: 30, V1: 70}
    met = Counter([(await ask(client)).headers["X-Mixpeek-Model"] for _ in range(300)])
    assert 40 < met[V2] < 140
    for number in range(20):
        sticky = {"X-Mixpeek-Sticky": f"user-{number}"}
        answers = [await ask(client, **sticky), await client.post(f"{PROTOCOL}/infer", json=TENSORS, headers=sticky)]
        assert len({answer.headers["X-Mixpeek-Model"] for answer in answers}) == 1


async def test_a_version_in_the_path_must_be_one_that_the_alias_sends_requests_to(
    client: httpx.AsyncClient, registry: Registry
) -> None:
    registry.targets = {V2: 1, V1: 99}
    answers = [await client.post(f"{PROTOCOL}/versions/2.0.0/infer", json=TENSORS) for _ in range(10)]
    assert {answer.headers["X-Mixpeek-Model"] for answer in answers} == {V2}
    assert (await client.get(f"{PROTOCOL}/versions/3.0.0")).status_code == 404


@pytest.mark.parametrize("seen", [True, False])
async def test_a_version_that_went_away_since_is_asked_for_no_more(
    client: httpx.AsyncClient, registry: Registry, replica: PoolReplica, seen: bool
) -> None:
    if seen:
        await ask(client)
    else:
        # The alias is known, its version is not.
        await client.get(f"{PROTOCOL}/versions/3.0.0")
    registry.targets, registry.deployed = {V2: 1}, {V2}
    if seen:
        replica._models._answers = type(replica._models._answers)(trust_s=0)
    answer = await ask(client)
    assert (answer.status_code, answer.headers["X-Mixpeek-Model"]) == (200, V2)
    registry.deployed = set()
    replica._models._answers = type(replica._models._answers)(trust_s=0)
    assert (await ask(client)).status_code == 409


async def test_another_organizations_alias_is_like_none(client: httpx.AsyncClient) -> None:
    other = {"Authorization": "Bearer sk_other"}
    foreign = await client.post(ENDPOINT, json={"inputs": [1]}, headers=other)
    nothing = await client.post("/models/ns_nobody/m@production", json={"inputs": [1]}, headers=other)
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "namespace_not_found")
    assert foreign.json()["error"]["message"] == nothing.json()["error"]["message"]
    missing = await client.post("/models/ns_acme/m@canary", json={"inputs": [1]})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "alias_not_found")


async def test_requests_are_counted_once_by_the_version_that_answered(
    client: httpx.AsyncClient, registry: Registry, replica: PoolReplica
) -> None:
    for _ in range(5):
        await ask(client)
    await client.post(f"{PROTOCOL}/infer", json=TENSORS)
    # Neither asks the model for anything.
    await client.get(PROTOCOL)
    await client.get(f"{PROTOCOL}/ready")
    # Refused by what the model takes, and by the model.
    for wrong in (["a"], [-1]):
        assert (await client.post(ENDPOINT, json={"inputs": wrong})).status_code == 422
    await client.post("/models/ns_acme/x_1_0_0", json={"inputs": [1]})
    registry.broken = {V2}
    assert (await client.post("/models/ns_acme/m_2_0_0", json={"inputs": [1]})).status_code == 422
    # The version went away: what answers instead is counted, and nothing else.
    registry.deployed, registry.targets, registry.broken = {V2}, {V2: 1}, set()
    replica._models._answers = type(replica._models._answers)(trust_s=0)
    assert (await ask(client)).status_code == 200
    await replica.close()
    assert registry.counted == {
        (V1, "", 200): 6, (V1, "validation_error", 422): 2, (V2, "", 200): 1, (V2, "invalid_weights", 422): 1,
        ("(unknown)", "model_not_found", 404): 1,
    }  # fmt: skip
    assert registry.items == 7 * 3


async def test_what_the_last_seconds_brought_is_reported_at_the_end(
    client: httpx.AsyncClient, registry: Registry, replica: PoolReplica
) -> None:
    await ask(client)
    assert not registry.counted
    await replica.close()
    assert registry.counted == {(V1, "", 200): 1}


async def test_the_shadow_computes_what_was_answered_and_is_counted_apart(
    client: httpx.AsyncClient, registry: Registry, replica: PoolReplica
) -> None:
    registry.shadow = Shadow(model_id=V2, percent=100)
    for _ in range(3):
        answer = await ask(client)
        assert (answer.json()["outputs"]["made"], answer.headers["X-Mixpeek-Model"]) == ([2, 3, 4], V1)
        await client.post(f"{PROTOCOL}/infer", json=TENSORS)
        await until(lambda: not replica._shadows._under_way)
    # What the answering version refused is no test of the other one.
    await client.post(ENDPOINT, json={"inputs": [-1]})
    # By its id it is asked as any model.
    await client.post("/models/ns_acme/m_1_0_0", json={"inputs": [1]})
    await until(lambda: not replica._shadows._under_way)
    await replica.close()
    assert registry.counted == {(V1, "", 200): 7, (V1, "validation_error", 422): 1}
    assert registry.shadowed == {(V2, ""): 6}


async def test_a_shadow_that_fails_or_hangs_is_nobodys_failure(
    client: httpx.AsyncClient, registry: Registry, replica: PoolReplica
) -> None:
    registry.shadow = Shadow(model_id=V2, percent=100)
    registry.broken = {V2}
    assert (await ask(client)).status_code == 200
    await until(lambda: not replica._shadows._under_way)
    registry.broken = set()
    registry.gates[V2].clear()
    for _ in range(20):
        assert (await ask(client)).status_code == 200
    # As many as may be under way wait; the others were dropped.
    assert len(replica._shadows._under_way) == 4
    registry.gates[V2].set()
    await until(lambda: not replica._shadows._under_way)
    await replica.close()
    assert registry.counted == {(V1, "", 200): 21}
    assert registry.shadowed == {(V2, "invalid_weights"): 1, (V2, ""): 4}


async def test_the_shadow_is_no_second_answer_of_its_own(
    client: httpx.AsyncClient, registry: Registry, replica: PoolReplica
) -> None:
    registry.targets, registry.shadow = {V2: 1, V1: 0}, Shadow(model_id=V2, percent=100)
    for _ in range(3):
        assert (await ask(client)).headers["X-Mixpeek-Model"] == V2
    assert not replica._shadows._under_way
