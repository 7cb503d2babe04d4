"""What observers are told: each request once with its model and outcome, and what becomes of models."""

from __future__ import annotations

import asyncio

import pytest
from local_models import CALLERS
from waiting import until

from mixpeek_ray.batching.engine import TextEngine
from mixpeek_ray.batching.observer import Batch, Request, observed
from mixpeek_ray.batching.pool import ModelPool
from mixpeek_ray.batching.requests import RerankRequest, TextRequest
from mixpeek_ray.core.errors import ModelNotFoundError, ValidationError, WeightsUnavailableError

pytestmark = pytest.mark.anyio

READER = CALLERS["sk_reader"]


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.batches: list[Batch] = []
        self.shared: list[tuple[str, str, int]] = []

    def answered(self, request: Request) -> None:
        self.requests.append(request)

    def computed(self, batch: Batch) -> None:
        self.batches.append(batch)

    def loaded(self, model: str, *, seconds: float, shared_bytes: int) -> None:
        assert seconds > 0
        self.shared.append(("loaded", model, shared_bytes))

    def unloaded(self, model: str, *, shared_bytes: int) -> None:
        self.shared.append(("unloaded", model, shared_bytes))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def engine(local_models, notes):
    pool = ModelPool(local_models, max_wait_s=1e9, idle_s=1e9, observer=notes)
    running = TextEngine(pool, notes)
    yield running
    running.close()
    await pool.close()


def outcome(request: Request) -> tuple[str | None, int, int, str]:
    return request.model, request.items, request.status, request.error_code


async def test_answers_are_told_with_their_model_items_and_tokens(engine, notes):
    computed = await engine.embed(READER, TextRequest(model="ns_acme/mine_1_0_0", inputs=["the fox", "a dog"]))
    (request,) = notes.requests
    assert outcome(request) == ("ns_acme/mine_1_0_0", 2, 200, "")
    assert request.organization_id == "org_acme"
    assert request.tokens == computed.tokens > 0
    assert request.latency_s > 0
    await engine.rerank(READER, RerankRequest(model="reranker", query="fox", documents=["a", "b", "c"]))
    assert outcome(notes.requests[1]) == ("reranker", 3, 200, "")


async def test_refusals_are_told_with_the_model_that_refused(engine, notes, local_models):
    with pytest.raises(ModelNotFoundError):
        await engine.embed(READER, TextRequest(model="ns_other/theirs_1_0_0", inputs=["a"]))
    with pytest.raises(ValidationError):
        await engine.embed_sparse(READER, TextRequest(model="dense", inputs=["a"]))
    local_models.failures = [WeightsUnavailableError("They are not there: put them there.")]
    with pytest.raises(WeightsUnavailableError):
        await engine.embed_sparse(READER, TextRequest(model="sparse", inputs=["a"]))
    assert [outcome(request) for request in notes.requests] == [
        (None, 1, 404, "model_not_found"),
        ("dense", 1, 422, ValidationError.code),
        ("sparse", 1, 503, WeightsUnavailableError.code),
    ]
    assert all(request.tokens == 0 for request in notes.requests)


async def test_who_leaves_is_told_too(engine, notes, local_models):
    local_models.may_load.clear()
    leaves = asyncio.ensure_future(engine.embed(READER, TextRequest(model="dense", inputs=["a"])))
    await until(lambda: local_models.loads)
    leaves.cancel()
    local_models.may_load.set()
    await asyncio.wait([leaves])
    assert outcome(notes.requests[0]) == ("dense", 1, 499, "client_closed_request")


def test_what_nobody_foresaw_is_an_internal_error(notes):
    with pytest.raises(ZeroDivisionError), observed(notes, READER, items=1):
        _ = 1 / 0
    assert outcome(notes.requests[0]) == (None, 1, 500, "internal_error")


async def test_batches_and_models_are_told(engine, notes):
    await engine.embed(READER, TextRequest(model="dense", inputs=["the fox"] * 3))
    await until(lambda: sum(batch.items for batch in notes.batches) == 3)
    assert {batch.model for batch in notes.batches} == {"dense"}
    assert sum(batch.tokens for batch in notes.batches) == notes.requests[0].tokens
    assert all(batch.waited_s >= 0 and batch.waiting == 0 for batch in notes.batches)
    ((what, model, shared_bytes),) = notes.shared
    assert (what, model) == ("loaded", "dense")
    assert shared_bytes > 1_000


async def test_a_replaced_model_is_let_go_with_its_own_bytes(engine, notes, local_models):
    for content in ("first", "second"):
        local_models.contents["dense"] = content
        await engine.embed(READER, TextRequest(model="dense", inputs=["a"]))
    await until(lambda: len(notes.shared) == 3)
    assert sorted(what for what, _, _ in notes.shared) == ["loaded", "loaded", "unloaded"]
    assert len({shared_bytes for _, _, shared_bytes in notes.shared}) == 1


async def test_shadow_requests_are_told_as_such(engine, notes):
    for is_shadow in (False, True):
        await engine.embed(READER, TextRequest(model="dense", inputs=["a"], is_shadow=is_shadow))
    assert [request.is_shadow for request in notes.requests] == [False, True]
