"""Aliases as the registry keeps them, over real stores and without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from custom_models import custom_model

from mixpeek_ray.core import ids, limits
from mixpeek_ray.core.alias_options import RollbackGuard, Shadow
from mixpeek_ray.core.aliases import GUARD, AliasChange, AliasPlan, AliasRef, ModelAlias
from mixpeek_ray.core.errors import (
    AliasNotFoundError,
    InvalidNameError,
    ModelInUseError,
    ModelNotDeployedError,
    ModelNotFoundError,
    NoPreviousTargetsError,
    QuotaExceededError,
    RevisionMismatchError,
    StorageUnavailableError,
    ValidationError,
)
from mixpeek_ray.registry.aliases import Aliases
from mixpeek_ray.registry.state import ModelCatalog, ModelKey, now
from mixpeek_ray.store.base import BlobStore
from mixpeek_ray.store.local_store import LocalStore
from mixpeek_ray.store.memory_store import MemoryStore
from mixpeek_ray.store.records import RecordStore

pytestmark = pytest.mark.anyio

NAMESPACE = "ns_a"
REF = AliasRef(namespace_id=NAMESPACE, name="m", alias="production")
LATEST = AliasRef(namespace_id=NAMESPACE, name="m", alias="latest")
V1, V2, V10 = "m_1_0_0", "m_1_2_0", "m_1_10_0"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "store")


class BrokenStore(MemoryStore):
    """A store that takes nothing more once it is broken."""

    broken = False

    def put(self, key: str, data: bytes) -> None:
        """Write, or fail."""
        if self.broken:
            raise StorageUnavailableError("The store is gone.")
        super().put(key, data)


class Registry:
    """Three versions of a model, all deployed, and the aliases over a store."""

    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.catalog = ModelCatalog()
        self.coming_back: set[ModelKey] = set()
        self._changes = 0
        for version in ("1.0.0", "1.2.0", "1.10.0"):
            self.have("m", version)
        self.restart()

    def restart(self) -> None:
        """Begin anew with what the store holds."""
        self.aliases = Aliases(self.catalog, RecordStore(self.store), is_coming_back=self.coming_back.__contains__)

    def have(self, name: str, version: str, *, deployed: bool = True) -> ModelKey:
        """Let the catalog have a version."""
        manifest = custom_model(name, namespace_id=NAMESPACE).manifest
        manifest = replace(manifest, version=version, model_id=ids.model_id(name, version))
        self.catalog.created(manifest)
        key = key_of(manifest.model_id)
        if deployed:
            self.catalog.begin_deploy(key)
            assert manifest.contents is not None
            self.catalog.deployed(key, manifest.contents)
        return key

    def change(self) -> AliasChange:
        """Return another change."""
        self._changes += 1
        return AliasChange(change_id=f"chg_{self._changes}", key_id="key_a", made_at=now())

    async def put(
        self,
        weights: Mapping[str, int],
        *,
        ref: AliasRef = REF,
        expected: int | None = None,
        shadow: Shadow | None = None,
        guard: RollbackGuard | None = None,
    ) -> ModelAlias:
        """Point an alias somewhere."""
        plan = AliasPlan(weights=weights, shadow=shadow, guard=guard)
        return await self.aliases.put(ref, plan, self.change(), expected)

    async def roll_back(self, expected: int | None = None) -> ModelAlias:
        """Point the alias back."""
        return await self.aliases.roll_back(REF, self.change(), expected)


@pytest.fixture
def registry(store: BlobStore) -> Registry:
    return Registry(store)


def key_of(model_id: str) -> ModelKey:
    return ModelKey(namespace_id=NAMESPACE, model_id=model_id)


def weights_of(alias: ModelAlias) -> dict[str, int]:
    return {target.model_id: target.weight for target in alias.current.targets}


async def test_a_move_is_durable_and_remembers_where_from(registry: Registry) -> None:
    first = await registry.put({V1: 100})
    second = await registry.put({V1: 90, V2: 10})
    assert (first.revision, second.revision) == (1, 2)
    assert [earlier.targets for earlier in second.history] == [first.current.targets]
    assert second.created_at == first.created_at
    registry.restart()
    assert registry.aliases.get(REF) == second
    assert registry.aliases.route(REF).targets == second.current.targets


async def test_the_highest_version_comes_first_whatever_the_order_of_the_call(registry: Registry) -> None:
    moved = await registry.put({V2: 2, V10: 1, V1: 3})
    assert list(weights_of(moved)) == [V10, V2, V1]


async def test_the_same_targets_again_change_nothing(registry: Registry) -> None:
    first = await registry.put({V1: 1, V2: 1})
    assert await registry.put({V2: 1, V1: 1}) == first


async def test_a_repeated_call_moves_once(registry: Registry) -> None:
    await registry.put({V1: 1})
    change = registry.change()
    moved = await registry.aliases.put(REF, AliasPlan(weights={V2: 1}), change, 1)
    registry.restart()
    assert await registry.aliases.put(REF, AliasPlan(weights={V2: 1}), change, 1) == moved
    back = registry.change()
    rolled_back = await registry.aliases.roll_back(REF, back, 2)
    registry.restart()
    assert await registry.aliases.roll_back(REF, back, 2) == rolled_back


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {V1: 0},
        {V1: 0, V2: 0},
        {V1: -1, V2: 2},
        {V1: limits.MAX_ALIAS_WEIGHT + 1},
        {"m_9_9_9": 1},
        {"other_1_0_0": 1},
    ],
)
async def test_targets_that_no_alias_may_have(registry: Registry, weights: dict[str, int]) -> None:
    registry.have("other", "1.0.0")
    with pytest.raises(ValidationError):
        await registry.put(weights)
    assert registry.aliases.list(NAMESPACE, None) == ()


async def test_no_alias_may_be_called_latest(registry: Registry) -> None:
    with pytest.raises(InvalidNameError):
        await registry.put({V1: 1}, ref=LATEST)


async def test_a_version_that_is_not_deployed_gets_no_requests(registry: Registry) -> None:
    key = registry.have("m", "2.0.0", deployed=False)
    with pytest.raises(ModelNotDeployedError):
        await registry.put({V1: 1, key.model_id: 1})
    await registry.put({V1: 1, key.model_id: 0})
    registry.catalog.begin_deploy(key)
    with pytest.raises(ModelNotDeployedError):
        await registry.put({V1: 1, key.model_id: 1})
    registry.coming_back.add(key)
    await registry.put({V1: 1, key.model_id: 1})


async def test_a_caller_who_saw_another_revision_is_refused(registry: Registry) -> None:
    with pytest.raises(RevisionMismatchError):
        await registry.put({V1: 1}, expected=1)
    await registry.put({V1: 1}, expected=0)
    with pytest.raises(RevisionMismatchError):
        await registry.put({V1: 1}, expected=0)
    await registry.put({V2: 1}, expected=1)
    with pytest.raises(RevisionMismatchError):
        await registry.roll_back(expected=1)
    with pytest.raises(RevisionMismatchError) as refused:
        await registry.aliases.delete(REF, 1)
    assert refused.value.details == {"revision": 2}
    await registry.aliases.delete(REF, 2)
    registry.restart()
    with pytest.raises(AliasNotFoundError):
        registry.aliases.get(REF)


async def test_of_many_at_once_each_sees_the_one_before(registry: Registry) -> None:
    await registry.put({V1: 1})
    outcomes = await asyncio.gather(
        *(registry.put({V1: 1, V2: weight}, expected=1) for weight in range(1, 9)), return_exceptions=True
    )
    assert sum(isinstance(outcome, RevisionMismatchError) for outcome in outcomes) == 7
    await asyncio.gather(*(registry.put({V1: 1, V2: weight}) for weight in range(10, 20)))
    assert registry.aliases.get(REF).revision == 12


async def test_rollbacks_go_back_step_by_step_and_never_forth(registry: Registry) -> None:
    steps = [{V1: 100}, {V2: 10, V1: 90}, {V2: 50, V1: 50}, {V2: 100, V1: 0}]
    for weights in steps:
        await registry.put(weights)
    for expected in steps[-2::-1]:
        assert weights_of(await registry.roll_back()) == expected
        registry.restart()
    with pytest.raises(NoPreviousTargetsError):
        await registry.roll_back()
    alias = registry.aliases.get(REF)
    assert (alias.revision, len(alias.history)) == (7, 6)
    await registry.put({V10: 1})
    assert weights_of(await registry.roll_back()) == steps[0]


async def test_a_first_target_set_has_nothing_before_it(registry: Registry) -> None:
    with pytest.raises(AliasNotFoundError):
        await registry.roll_back()
    await registry.put({V1: 1})
    with pytest.raises(NoPreviousTargetsError):
        await registry.roll_back()


async def test_no_rollback_to_what_is_gone(registry: Registry) -> None:
    await registry.put({V1: 1})
    moved = await registry.put({V2: 1})
    async with registry.aliases.none_serving(key_of(V1)):
        registry.catalog.undeployed(key_of(V1))
    with pytest.raises(ModelNotDeployedError):
        await registry.roll_back()
    async with registry.aliases.none_naming(key_of(V1)):
        registry.catalog.deleted(key_of(V1))
    with pytest.raises(NoPreviousTargetsError):
        await registry.roll_back()
    assert registry.aliases.get(REF) == moved


async def test_the_history_is_bounded(registry: Registry) -> None:
    for weight in range(1, limits.MAX_ALIAS_HISTORY + 4):
        await registry.put({V1: weight, V2: 1})
    alias = registry.aliases.get(REF)
    assert len(alias.history) == limits.MAX_ALIAS_HISTORY
    assert alias.history[0].targets[-1].weight == limits.MAX_ALIAS_HISTORY + 2


async def test_versions_in_use_stay(registry: Registry) -> None:
    await registry.put({V1: 1, V2: 0})
    for guard, kept in ((registry.aliases.none_naming, (V1, V2)), (registry.aliases.none_serving, (V1,))):
        for model_id in kept:
            with pytest.raises(ModelInUseError) as refused:
                async with guard(key_of(model_id)):
                    raise AssertionError
            assert refused.value.details == {"aliases": ["m@production"]}
    async with registry.aliases.none_serving(key_of(V2)):
        pass
    async with registry.aliases.none_naming(key_of(V10)):
        pass


async def test_an_alias_waits_for_a_version_that_is_going_away(registry: Registry) -> None:
    async with registry.aliases.none_naming(key_of(V2)):
        putting = asyncio.ensure_future(registry.put({V2: 1}))
        await asyncio.wait({putting}, timeout=0.05)
        assert not putting.done()
        registry.catalog.deleted(key_of(V2))
    with pytest.raises(ValidationError):
        await putting


async def test_latest_is_the_highest_version_that_is_deployed(registry: Registry) -> None:
    assert [target.model_id for target in registry.aliases.route(LATEST).targets] == [V10]
    higher = registry.have("m", "2.0.0", deployed=False)
    assert [target.model_id for target in registry.aliases.route(LATEST).targets] == [V10]
    registry.catalog.begin_deploy(higher)
    assert [target.model_id for target in registry.aliases.route(LATEST).targets] == [V10]
    registry.coming_back.add(higher)
    assert [target.model_id for target in registry.aliases.route(LATEST).targets] == [higher.model_id]
    for model_id in (V1, V2, V10, higher.model_id):
        registry.catalog.undeployed(key_of(model_id))
    with pytest.raises(ModelNotDeployedError):
        registry.aliases.route(LATEST)
    with pytest.raises(ModelNotFoundError):
        registry.aliases.route(replace(LATEST, name="unknown"))


async def test_lists_are_of_one_namespace_and_one_name(registry: Registry) -> None:
    registry.have("n", "1.0.0")
    refs = [REF, replace(REF, alias="b"), replace(REF, name="n")]
    for ref in refs:
        await registry.put({f"{ref.name}_1_0_0": 1}, ref=ref)
    assert [alias.ref for alias in registry.aliases.list(NAMESPACE, None)] == [refs[1], refs[0], refs[2]]
    assert [alias.ref for alias in registry.aliases.list(NAMESPACE, "n")] == [refs[2]]
    assert registry.aliases.list("ns_b", None) == ()


async def test_a_namespace_has_room_for_so_many(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ALIASES_PER_NAMESPACE", 2)
    for alias in ("a", "b"):
        await registry.put({V1: 1}, ref=replace(REF, alias=alias))
    with pytest.raises(QuotaExceededError):
        await registry.put({V1: 1})
    await registry.put({V2: 1}, ref=replace(REF, alias="a"))


async def test_a_move_that_could_not_be_written_did_not_happen() -> None:
    store = BrokenStore()
    registry = Registry(store)
    before = await registry.put({V1: 1})
    store.broken = True
    with pytest.raises(StorageUnavailableError):
        await registry.put({V2: 1})
    assert registry.aliases.get(REF) == before


async def test_a_damaged_record_costs_that_alias_alone(registry: Registry) -> None:
    await registry.put({V1: 1})
    other = await registry.put({V1: 1}, ref=replace(REF, alias="other"))
    (key,) = [blob.key for blob in registry.store.list("") if blob.key.endswith("/production.alias.json")]
    registry.store.put(key, b"{}")
    registry.restart()
    assert registry.aliases.list(NAMESPACE, None) == (other,)


# Shadows and guards

SHADOW = Shadow(model_id=V10, percent=20)
WATCHED = RollbackGuard(max_error_rate=0.05)


async def test_shadow_and_guard_are_part_of_what_an_alias_does(registry: Registry) -> None:
    first = await registry.put({V1: 1}, shadow=SHADOW, guard=WATCHED)
    assert await registry.put({V1: 1}, shadow=SHADOW, guard=WATCHED) == first
    assert (await registry.put({V1: 1}, shadow=SHADOW)).revision == 2
    assert registry.aliases.route(REF).shadow == SHADOW
    third = await registry.put({V2: 1})
    assert (registry.aliases.route(REF).shadow, third.history[1].guard) == (None, WATCHED)
    await registry.roll_back()
    back = await registry.roll_back()
    registry.restart()
    assert registry.aliases.get(REF) == back
    assert (back.current.shadow, back.current.guard) == (SHADOW, WATCHED)


async def test_a_shadow_must_be_a_deployed_version_of_the_model(registry: Registry) -> None:
    registry.have("other", "1.0.0")
    waiting = registry.have("m", "2.0.0", deployed=False)
    with pytest.raises(ValidationError) as refused:
        await registry.put({V1: 1}, shadow=Shadow(model_id="other_1_0_0", percent=1))
    assert refused.value.details == {"field": "shadow"}
    with pytest.raises(ModelNotDeployedError):
        await registry.put({V1: 1}, shadow=Shadow(model_id=waiting.model_id, percent=1))


async def test_a_version_in_the_shadow_stays(registry: Registry) -> None:
    await registry.put({V1: 1}, shadow=SHADOW)
    for guard in (registry.aliases.none_naming, registry.aliases.none_serving):
        with pytest.raises(ModelInUseError):
            async with guard(key_of(V10)):
                raise AssertionError


async def test_a_rollback_does_not_fail_for_a_shadow_that_is_gone(registry: Registry) -> None:
    await registry.put({V1: 1}, shadow=SHADOW)
    await registry.put({V2: 1})
    async with registry.aliases.none_serving(key_of(V10)):
        registry.catalog.undeployed(key_of(V10))
    back = await registry.roll_back()
    assert (weights_of(back), back.current.shadow) == ({V1: 1}, None)


async def test_a_withdrawn_version_does_not_come_back(registry: Registry) -> None:
    for weights in ({V1: 100}, {V2: 10, V1: 90}, {V2: 50, V1: 50}):
        await registry.put(weights, guard=WATCHED)
    change = replace(registry.change(), key_id=GUARD, reason="m_1_2_0: it fails")
    withdrawn = await registry.aliases.withdraw(REF, V2, change, 3)
    registry.restart()
    assert registry.aliases.get(REF) == withdrawn
    assert (weights_of(withdrawn), withdrawn.current.change) == ({V1: 100}, change)
    assert [entry.undone for entry in withdrawn.history] == [True] * 3
    with pytest.raises(NoPreviousTargetsError):
        await registry.roll_back()


async def test_a_withdrawal_does_not_come_back_to_what_a_rollback_left(registry: Registry) -> None:
    for weights in ({V1: 100}, {V2: 10, V1: 90}, {V10: 1}):
        await registry.put(weights)
    await registry.roll_back()
    assert weights_of(await registry.aliases.withdraw(REF, V2, registry.change(), 4)) == {V1: 100}


@pytest.mark.parametrize("lost", [False, True], ids=["never without it", "what was before is undeployed"])
async def test_without_a_way_back_the_version_gets_no_more_requests(registry: Registry, lost: bool) -> None:
    if lost:
        await registry.put({V10: 1})
    await registry.put({V2: 10, V1: 90}, guard=WATCHED)
    if lost:
        async with registry.aliases.none_serving(key_of(V10)):
            registry.catalog.undeployed(key_of(V10))
    withdrawn = await registry.aliases.withdraw(REF, V2, registry.change(), 2 if lost else 1)
    assert weights_of(withdrawn) == {V2: 0, V1: 90}
    assert withdrawn.history[0].undone


async def test_an_alias_that_was_moved_meanwhile_is_not_withdrawn(registry: Registry) -> None:
    await registry.put({V2: 10, V1: 90}, guard=WATCHED)
    moved = await registry.put({V1: 1})
    with pytest.raises(RevisionMismatchError):
        await registry.aliases.withdraw(REF, V2, registry.change(), 1)
    assert registry.aliases.get(REF) == moved


async def test_only_aliases_that_divide_their_requests_are_guarded(registry: Registry) -> None:
    await registry.put({V2: 10, V1: 90}, guard=WATCHED)
    await registry.put({V2: 10, V1: 90}, ref=replace(REF, alias="free"))
    await registry.put({V2: 0, V1: 90}, ref=replace(REF, alias="one"), guard=WATCHED)
    assert [alias.ref for alias, _ in registry.aliases.guarded()] == [REF]
