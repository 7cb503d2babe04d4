"""Models at hand: loaded once, kept while they are used, replaced when their content is, gone when nobody asks."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from local_models import CALLERS, LocalModels
from waiting import until

from mixpeek_ray.batching.pool import ModelPool, ModelRef
from mixpeek_ray.core.errors import (
    InvalidWeightsError,
    ModelNotFoundError,
    OverloadedError,
    WeightsUnavailableError,
)

pytestmark = pytest.mark.anyio

READER, OTHER = CALLERS["sk_reader"], CALLERS["sk_other"]
FOREVER_S = 1e6


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def pool_of(models: LocalModels, *, idle_s: float = FOREVER_S) -> AsyncIterator[ModelPool]:
    pool = ModelPool(models, max_wait_s=FOREVER_S, idle_s=idle_s)
    try:
        yield pool
    finally:
        models.may_load.set()
        await pool.close()


async def used(pool: ModelPool, name: str = "dense") -> int:
    """Return which family was used, as its identity."""
    async with pool.use(await pool.find(READER, name)) as model:
        return id(model.family)


def is_gone(family: weakref.ref) -> bool:
    gc.collect()
    return family() is None


async def test_many_ask_and_one_load_answers(local_models):
    async with pool_of(local_models) as pool:
        families = await asyncio.gather(*(used(pool) for _ in range(20)))
        assert await used(pool) == families[0]
        assert set(families) == {families[0]}
        assert local_models.loads == [ModelRef(name="dense", content="first")] == list(pool.loaded())


async def test_a_failed_load_reaches_all_who_wait_and_is_tried_again(local_models):
    local_models.failures = [WeightsUnavailableError("They are not there: put them there.")]
    local_models.may_load.clear()
    async with pool_of(local_models) as pool:
        waiting = [asyncio.ensure_future(used(pool)) for _ in range(5)]
        await until(lambda: local_models.loads)
        local_models.may_load.set()
        failures = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(failure) for failure in failures] == [WeightsUnavailableError] * 5
        assert pool.loaded() == ()
        await used(pool)
        assert len(local_models.loads) == 2


async def test_weights_that_are_no_model_are_blamed_on_the_model(local_models):
    local_models.failures = [InvalidWeightsError("They contradict themselves.")]
    async with pool_of(local_models) as pool:
        with pytest.raises(InvalidWeightsError) as refused:
            await used(pool)
        assert refused.value.details["field"] == "model"


async def test_who_leaves_does_not_end_the_load_that_others_wait_for(local_models):
    local_models.may_load.clear()
    async with pool_of(local_models) as pool:
        leaves, stays = asyncio.ensure_future(used(pool)), asyncio.ensure_future(used(pool))
        await until(lambda: local_models.loads)
        leaves.cancel()
        local_models.may_load.set()
        await stays
        assert leaves.cancelled()
        assert len(local_models.loads) == 1


async def test_a_load_that_everybody_left_is_kept_for_the_next(local_models):
    local_models.may_load.clear()
    async with pool_of(local_models) as pool:
        leaves = asyncio.ensure_future(used(pool))
        await until(lambda: local_models.loads)
        leaves.cancel()
        local_models.may_load.set()
        await used(pool)
        assert len(local_models.loads) == 1


async def test_an_idle_model_is_let_go_and_comes_back(local_models):
    async with pool_of(local_models, idle_s=0.0) as pool:
        async with pool.use(await pool.find(READER, "dense")) as model:
            family = weakref.ref(model.family)
            await asyncio.sleep(0)
            assert [ref.name for ref in pool.loaded()] == ["dense"]
            del model
        await until(lambda: not pool.loaded())
        await until(lambda: is_gone(family))
        await used(pool)
        assert len(local_models.loads) == 2


async def test_a_model_in_use_is_not_idle(local_models):
    async with pool_of(local_models, idle_s=0.0) as pool, pool.use(await pool.find(READER, "dense")) as first:
        # The second user leaves: were that the end of the model, its thread would never answer the first.
        assert await used(pool) == id(first.family)
        items = first.family.pre(["the fox"], role="document", truncate="end")
        await asyncio.sleep(0.01)
        assert len(await first.runner.run(items)) == 1
        assert len(local_models.loads) == 1


async def test_another_content_takes_the_name_over_and_the_old_one_stays_for_its_users(local_models):
    async with pool_of(local_models) as pool:
        async with pool.use(await pool.find(READER, "dense")) as old:
            local_models.contents["dense"] = "second"
            assert await used(pool) != id(old.family)
            items = old.family.pre(["the fox"], role="document", truncate="end")
            assert len(await old.runner.run(items)) == 1
            family = weakref.ref(old.family)
            del old
        await until(lambda: is_gone(family))
        assert pool.loaded() == (ModelRef(name="dense", content="second"),)


async def test_what_was_replaced_while_it_was_loading_is_let_go(local_models):
    local_models.may_load.clear()
    async with pool_of(local_models) as pool:
        async with asyncio.TaskGroup() as group:
            group.create_task(used(pool))
            await until(lambda: len(local_models.loads) == 1)
            local_models.contents["dense"] = "second"
            group.create_task(used(pool))
            await until(lambda: len(local_models.loads) == 2)
            local_models.may_load.set()
        assert [ref.content for ref in pool.loaded()] == ["second"]


async def test_not_everybody_may_wait_for_a_load(local_models):
    local_models.may_load.clear()
    async with pool_of(local_models) as pool:
        waiting = [asyncio.ensure_future(used(pool)) for _ in range(256)]
        await until(lambda: local_models.loads)
        with pytest.raises(OverloadedError):
            await used(pool)
        local_models.may_load.set()
        await asyncio.gather(*waiting)
        await used(pool)


async def test_only_its_organisation_finds_a_custom_model(local_models):
    async with pool_of(local_models) as pool:
        assert await used(pool, "ns_acme/mine_1_0_0")
        for caller, name in ((READER, "ns_other/theirs_1_0_0"), (OTHER, "ns_acme/mine_1_0_0"), (READER, "ns_x/y")):
            with pytest.raises(ModelNotFoundError):
                async with pool.use(await pool.find(caller, name)):
                    pass
        assert len(local_models.loads) == 1
