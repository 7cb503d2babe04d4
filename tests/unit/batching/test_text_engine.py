"""From a request to results: which model may answer it, how much it may hold, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from local_models import CALLERS
from waiting import until

from mixpeek_ray.batching.engine import TextEngine
from mixpeek_ray.batching.pool import ModelPool
from mixpeek_ray.batching.requests import RerankRequest, TextRequest
from mixpeek_ray.core.errors import InputTooLongError, OverloadedError, ValidationError
from mixpeek_ray.families.base import Role, Truncate
from mixpeek_ray.families.late_interaction import max_sim

pytestmark = pytest.mark.anyio

READER = CALLERS["sk_reader"]
TEXTS = ["the quick brown fox", "", "lazy dog", "what is the query"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def pool(local_models) -> AsyncIterator[ModelPool]:
    pool = ModelPool(local_models, max_wait_s=1e9, idle_s=1e9)
    yield pool
    await pool.close()


@pytest.fixture
async def engine(pool) -> AsyncIterator[TextEngine]:
    engine = TextEngine(pool)
    yield engine
    engine.close()


def dense(*texts: str, **options) -> TextRequest:
    return TextRequest(model="dense", inputs=texts, **options)


async def test_each_family_answers_with_its_own_shape(engine):
    request = {"inputs": TEXTS}
    vectors = await engine.embed(READER, TextRequest(model="dense", **request))
    assert [vector.shape for vector in vectors.results] == [(32,)] * 4
    sparse = await engine.embed_sparse(READER, TextRequest(model="sparse", **request))
    assert all((vector.values > 0).all() for vector in sparse.results)
    matrices = await engine.embed_multi_vector(READER, TextRequest(model="multi", **request))
    assert {matrix.shape[1] for matrix in matrices.results} == {16}
    scores = await engine.rerank(READER, RerankRequest(model="reranker", query="the fox", documents=TEXTS))
    assert all(0 < score < 1 for score in scores.results)
    assert [made.model for made in (vectors, sparse, matrices, scores)] == ["dense", "sparse", "multi", "reranker"]


async def test_tokens_are_those_of_all_inputs_with_the_special_ones(engine, pool):
    computed = await engine.embed(READER, dense(*TEXTS))
    one_by_one = [(await engine.embed(READER, dense(text))).tokens for text in TEXTS]
    assert computed.tokens == sum(one_by_one)
    assert one_by_one[1] == 2
    # A query is padded to its full length for the network, and nobody sent the padding.
    query = await engine.embed_multi_vector(READER, TextRequest(model="multi", inputs=["fox"], role=Role.QUERY))
    assert query.tokens < len(query.results[0])


async def test_a_late_interaction_model_ranks_by_what_it_embeds(engine):
    query = await engine.embed_multi_vector(READER, TextRequest(model="multi", inputs=["fox"], role=Role.QUERY))
    documents = await engine.embed_multi_vector(READER, TextRequest(model="multi", inputs=TEXTS))
    expected = [max_sim(query.results[0], document) for document in documents.results]
    few = await engine.rerank(READER, RerankRequest(model="multi", query="fox", documents=TEXTS))
    many = await engine.rerank(READER, RerankRequest(model="multi", query="fox", documents=TEXTS * 10))
    np.testing.assert_allclose(few.results, expected, atol=1e-5)
    np.testing.assert_allclose(many.results, expected * 10, atol=1e-5)
    assert few.tokens == query.tokens + documents.tokens


@pytest.mark.parametrize(
    ("call", "model", "hint"),
    [
        ("embed", "reranker", "is a reranker: POST /v1/rerank"),
        ("embed", "sparse", "POST /v1/embeddings/sparse"),
        ("embed_sparse", "multi", "POST /v1/embeddings/multi-vector"),
        ("embed_multi_vector", "dense", "POST /v1/embeddings."),
    ],
)
async def test_a_model_of_another_family_is_refused_with_the_way_to_it(engine, call, model, hint):
    with pytest.raises(ValidationError, match=hint) as refused:
        await getattr(engine, call)(READER, TextRequest(model=model, inputs=["a"]))
    assert refused.value.details["field"] == "model"
    with pytest.raises(ValidationError, match=r"POST /v1/embeddings\."):
        await engine.rerank(READER, RerankRequest(model="dense", query="a", documents=["a"]))


async def test_how_much_a_request_may_hold(engine):
    with pytest.raises(ValidationError, match="at least one"):
        await engine.embed(READER, dense())
    with pytest.raises(ValidationError, match="2049 inputs are more than the 2048"):
        await engine.embed(READER, dense(*["a"] * 2_049))
    with pytest.raises(ValidationError, match="2049 inputs are more than the 2048"):
        await engine.rerank(READER, RerankRequest(model="reranker", query="a", documents=["a"] * 2_049))
    with pytest.raises(InputTooLongError) as refused:
        await engine.embed(READER, dense("a", "a" * 400_001))
    assert refused.value.details["index"] == 1
    with pytest.raises(InputTooLongError) as refused:
        await engine.rerank(READER, RerankRequest(model="reranker", query="a" * 400_001, documents=["a"]))
    assert refused.value.details["field"] == "query"


async def test_too_many_tokens_are_refused_only_if_the_caller_wants_that(engine):
    long = "the fox " * 100
    kept = await engine.embed(READER, dense("a", long))
    assert kept.tokens == 3 + 64
    with pytest.raises(InputTooLongError) as refused:
        await engine.embed(READER, dense("a", long, truncate=Truncate.NONE))
    assert (refused.value.details["index"], refused.value.details["limit"]) == (1, 64)
    question = RerankRequest(model="multi", query=long, documents=["a"], truncate=Truncate.NONE)
    with pytest.raises(InputTooLongError) as refused:
        await engine.rerank(READER, question)
    assert refused.value.details["field"] == "query"
    assert "index" not in refused.value.details


@pytest.mark.parametrize("option", [{"instruction": "find it"}, {"dimensions": 8}])
async def test_what_only_dense_models_take_is_refused_by_others(engine, option):
    for call, model in (("embed_sparse", "sparse"), ("embed_multi_vector", "multi")):
        with pytest.raises(ValidationError) as refused:
            await getattr(engine, call)(READER, TextRequest(model=model, inputs=["a"], **option))
        assert refused.value.details["field"] == next(iter(option))
    asked = TextRequest(model="instructed", inputs=["a"], role=Role.QUERY, **option)
    assert len((await engine.embed(READER, asked)).results[0]) == option.get("dimensions", 32)


async def test_small_and_large_requests_make_the_same_vectors(engine):
    texts = [f"the {word} fox number {number}" for number in range(200) for word in ("quick", "lazy")]
    together = await engine.embed(READER, dense(*texts))
    alone = await asyncio.gather(*(engine.embed(READER, dense(text)) for text in texts[::40]))
    for whole, single in zip(together.results[::40], alone, strict=True):
        np.testing.assert_allclose(whole, single.results[0], atol=1e-5)


async def test_a_small_request_is_done_before_a_large_one_that_came_first(engine, pool, hold_up):
    await engine.embed(READER, dense("load it"))
    held = hold_up()
    finished: list[str] = []

    async def finish(name: str, request: TextRequest) -> None:
        await engine.embed(READER, request)
        finished.append(name)

    async with pool.use(await pool.find(READER, "dense")) as model, asyncio.TaskGroup() as group:
        group.create_task(finish("first", dense("hold the thread")))
        await asyncio.to_thread(held.computing.wait, 30)
        group.create_task(finish("large", dense(*["the quick brown fox"] * 2_048)))
        await until(lambda: model.runner.waiting == 1)
        group.create_task(finish("small", dense("the lazy dog")))
        await until(lambda: model.runner.waiting == 2)
        held.let_go.set()
    assert finished == ["first", "small", "large"]


async def test_a_caller_who_leaves_takes_the_work_back(engine, pool, hold_up):
    await engine.embed(READER, dense("load it"))
    held = hold_up()
    async with pool.use(await pool.find(READER, "dense")) as model:
        first = asyncio.ensure_future(engine.embed(READER, dense("hold the thread")))
        await asyncio.to_thread(held.computing.wait, 30)
        leaves = asyncio.ensure_future(engine.embed(READER, dense(*["the fox"] * 500)))
        await until(lambda: model.runner.waiting == 1)
        leaves.cancel()
        await until(lambda: model.runner.waiting == 0)
        held.let_go.set()
        await first
    assert leaves.cancelled()


async def test_what_came_while_a_model_loaded_is_not_all_let_in(engine, pool, hold_up, local_models):
    """Nothing was measured yet: still, what waits is bounded."""
    await engine.embed(READER, TextRequest(model="ns_acme/mine_1_0_0", inputs=["warm up torch"]))
    held = hold_up()
    held.let_go.set()
    local_models.may_load.clear()
    words = " ".join(["fox"] * 60)
    asked = [asyncio.ensure_future(engine.embed(READER, dense(*[words] * 30))) for _ in range(10)]
    await until(lambda: local_models.loads[-1].name == "dense")
    local_models.may_load.set()
    async with pool.use(await pool.find(READER, "dense")):
        held.let_go.clear()
        await until(lambda: any(request.done() for request in asked))
        held.let_go.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert 0 < len(refused) < 10
    assert all(answer.details["retry_after_seconds"] >= 1 for answer in refused)
    assert [type(answer).__name__ for answer in answers if not isinstance(answer, OverloadedError)].count(
        "Computed"
    ) == 10 - len(refused)
