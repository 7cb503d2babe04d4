"""The guard at work over the registry's aliases: what it asks for, what it does, and what it leaves for later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from custom_models import custom_model

from mixpeek_ray.analytics.recent import RecentRequests
from mixpeek_ray.core import ids
from mixpeek_ray.core.alias_options import RollbackGuard
from mixpeek_ray.core.aliases import GUARD, AliasChange, AliasPlan, AliasRef
from mixpeek_ray.core.errors import RegistryUnavailableError
from mixpeek_ray.registry.alias_guard import AliasWatch
from mixpeek_ray.registry.aliases import Aliases
from mixpeek_ray.registry.state import ModelCatalog, ModelKey, now
from mixpeek_ray.store.memory_store import MemoryStore
from mixpeek_ray.store.records import RecordStore

pytestmark = pytest.mark.anyio

REF = AliasRef(namespace_id="ns_acme", name="m", alias="production")
V1, V2, V10 = "m_1_0_0", "m_1_2_0", "m_1_10_0"
GUARDED = RollbackGuard(max_error_rate=0.05, min_requests=10)
GOOD = RecentRequests(requests=1_000, errors=0, median_s=0.01)
BAD = RecentRequests(requests=100, errors=50, median_s=0.01)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Counts:
    """What analytics would tell; ``asked`` remembers what was asked."""

    def __init__(self) -> None:
        self.answer = [BAD, GOOD]
        self.asked: list[tuple[str, Sequence[Sequence[str]], float]] = []
        self.failure: Exception | None = None

    async def ask(self, namespace_id: str, groups: Sequence[Sequence[str]], since_s: float) -> Sequence[RecentRequests]:
        self.asked.append((namespace_id, groups, since_s))
        if self.failure is not None:
            raise self.failure
        return self.answer


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def catalog() -> ModelCatalog:
    return ModelCatalog()


@pytest.fixture
def aliases(catalog: ModelCatalog) -> Aliases:
    for version in ("1.0.0", "1.2.0", "1.10.0"):
        manifest = custom_model("m").manifest
        manifest = replace(manifest, version=version, model_id=ids.model_id("m", version))
        catalog.created(manifest)
        key = ModelKey(namespace_id="ns_acme", model_id=manifest.model_id)
        catalog.begin_deploy(key)
        assert manifest.contents is not None
        catalog.deployed(key, manifest.contents)
    return Aliases(catalog, RecordStore(MemoryStore()), is_coming_back=lambda _: False)


@pytest.fixture
def watch(aliases: Aliases, counts: Counts) -> AliasWatch:
    return AliasWatch(aliases, counts.ask)


async def put(aliases: Aliases, guard: RollbackGuard | None = GUARDED, **weights: int) -> AliasChange:
    change = AliasChange(change_id=ids.new_id("chg"), key_id="key_a", made_at=now() - timedelta(seconds=30))
    await aliases.put(REF, AliasPlan(weights=weights, guard=guard), change, None)
    return change


async def test_a_bad_canary_is_taken_back_once_with_the_reason(
    aliases: Aliases, counts: Counts, watch: AliasWatch, monkeypatch: pytest.MonkeyPatch
):
    await put(aliases, **{V1: 1})
    moved = await put(aliases, **{V1: 60, V2: 30, V10: 10})
    withdrawals = []
    monkeypatch.setattr(watch._withdrawals, "inc", lambda value, tags: withdrawals.append((value, tags)))
    await watch.judge()
    await watch.judge()
    assert withdrawals == [(1, {"alias": "ns_acme/m@production"})]
    ((namespace_id, groups, since_s),) = counts.asked
    assert (namespace_id, groups, since_s) == ("ns_acme", ((V10,), (V2, V1)), moved.made_at.timestamp())
    alias = aliases.get(REF)
    assert [(target.model_id, target.weight) for target in alias.current.targets] == [(V1, 1)]
    assert (alias.revision, alias.current.change.key_id) == (3, GUARD)
    assert alias.current.change.reason.startswith("m_1_10_0: 50.0% of its 100 requests failed")


async def test_a_canary_that_crashed_is_taken_back_unless_nobody_else_could_answer(
    aliases: Aliases, catalog: ModelCatalog, counts: Counts, watch: AliasWatch
):
    await put(aliases, **{V1: 90, V2: 10})
    for lost in (V2, V1):
        catalog.undeployed(ModelKey(namespace_id="ns_acme", model_id=lost))
    await watch.judge()
    assert aliases.get(REF).revision == 1
    key = ModelKey(namespace_id="ns_acme", model_id=V1)
    catalog.begin_deploy(key)
    contents = catalog.get(key).manifest.contents
    assert contents is not None
    catalog.deployed(key, contents)
    await watch.judge()
    alias = aliases.get(REF)
    assert [(target.model_id, target.weight) for target in alias.current.targets] == [(V2, 0), (V1, 90)]
    assert alias.current.change.reason == f"{V2}: it is not deployed any more"
    assert counts.asked == []


async def test_requests_count_within_the_window(aliases: Aliases, counts: Counts, watch: AliasWatch, monkeypatch):
    counts.answer = [GOOD, GOOD]
    await put(aliases, **{V1: 60, V2: 30})
    later = now() + timedelta(hours=1)
    monkeypatch.setattr("mixpeek_ray.registry.alias_guard.now", lambda: later)
    await watch.judge()
    assert counts.asked[0][2] == (later - timedelta(minutes=GUARDED.window_minutes)).timestamp()
    assert aliases.get(REF).revision == 1


async def test_what_has_no_guard_or_one_target_is_not_asked_for(aliases: Aliases, counts: Counts, watch: AliasWatch):
    for guard, weights in ((None, {V1: 1, V2: 1}), (GUARDED, {V2: 1}), (GUARDED, {V1: 1, V2: 0})):
        await put(aliases, guard, **weights)
        await watch.judge()
    assert counts.asked == []


@pytest.mark.parametrize("failure", [RegistryUnavailableError("It does not answer."), ZeroDivisionError()])
async def test_what_cannot_be_judged_now_stays(
    aliases: Aliases, counts: Counts, watch: AliasWatch, failure: Exception, caplog: pytest.LogCaptureFixture
):
    await put(aliases, **{V1: 1, V2: 1})
    counts.failure = failure
    for _ in range(3):
        await watch.judge()
    assert aliases.get(REF).revision == 1
    assert len([record for record in caplog.records if "not judged" in record.message]) == 1
    counts.failure = None
    await watch.judge()
    assert aliases.get(REF).revision == 2
