"""Text inference: from a caller's request to a loaded model's results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from mixpeek_ray.batching.observer import Observer, Unobserved, observed
from mixpeek_ray.batching.pool import ModelPool, ReadyModel
from mixpeek_ray.batching.requests import Computed, RerankRequest, TextRequest
from mixpeek_ray.catalog.cards import Family
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import InputTooLongError, ValidationError
from mixpeek_ray.core.records import Principal
from mixpeek_ray.families.base import FloatArray, Item, Role, SparseVector, TextInput
from mixpeek_ray.families.build import AnyFamily
from mixpeek_ray.families.dense import DenseFamily
from mixpeek_ray.families.late_interaction import LateInteractionFamily, LateInteractionItem, max_sim
from mixpeek_ray.families.rerank import RerankFamily
from mixpeek_ray.families.sparse import SparseFamily

FamilyT = TypeVar("FamilyT", bound=AnyFamily)
OutcomeT = TypeVar("OutcomeT")

# Characters, or given token ids, that are tokenized on the event loop: they hold it up for about 1 ms, and going to a
# thread and back takes 0.05 ms while nothing is computed, up to 1 ms while a batch is.
_INLINE_CHARS = 2_000
# Documents whose vectors are compared on the event loop: about 0.1 ms each.
_INLINE_DOCUMENTS = 16
# The tokenizer spreads a large request over the cores by itself; a second thread keeps the next one from waiting.
_THREADS = 2

_KINDS = {
    Family.DENSE: "makes dense embeddings: POST /v1/embeddings",
    Family.SPARSE: "makes sparse embeddings: POST /v1/embeddings/sparse",
    Family.LATE_INTERACTION: "makes multi-vector embeddings: POST /v1/embeddings/multi-vector, or /v1/rerank",
    Family.RERANK: "is a reranker: POST /v1/rerank",
}


class TextEngine:
    """Computes with the models of a pool; what ``api.inference_ports.TextInference`` asks for."""

    def __init__(self, pool: ModelPool, observer: Observer | None = None) -> None:
        self._pool = pool
        self._observer = observer or Unobserved()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenize")

    async def embed(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 vector [dimensions] an input."""
        return await self._answer(principal, request, len(request.inputs), partial(self._embed, request))

    async def embed_sparse(self, principal: Principal, request: TextRequest) -> Computed[SparseVector]:
        """Return one sparse vector an input."""
        return await self._answer(principal, request, len(request.inputs), partial(self._embed_sparse, request))

    async def embed_multi_vector(self, principal: Principal, request: TextRequest) -> Computed[FloatArray]:
        """Return one float32 matrix [tokens, dimensions] an input."""
        compute = partial(self._embed_multi_vector, request)
        return await self._answer(principal, request, len(request.inputs), compute)

    async def rerank(self, principal: Principal, request: RerankRequest) -> Computed[float]:
        """Return one score a document, in the documents' order."""
        return await self._answer(principal, request, len(request.documents), partial(self._rerank, request))

    async def _answer(
        self,
        principal: Principal,
        request: TextRequest | RerankRequest,
        items: int,
        compute: Callable[[ReadyModel], Awaitable[Computed[OutcomeT]]],
    ) -> Computed[OutcomeT]:
        with observed(self._observer, principal, items=items, is_shadow=request.is_shadow) as under_way:
            ref = await self._pool.find(principal, request.model)
            under_way.model = ref.name
            async with self._pool.use(ref) as model:
                computed = await compute(model)
            under_way.tokens = computed.tokens
            return computed

    async def _embed(self, request: TextRequest, model: ReadyModel) -> Computed[FloatArray]:
        family = _as(DenseFamily, model)
        _check_inputs(model, request.inputs)
        prepare = partial(
            family.pre,
            request.inputs,
            role=request.role,
            truncate=request.truncate,
            instruction=request.instruction,
            dimensions=request.dimensions,
        )
        return await self._computed(model, await self._prepared(prepare, request.inputs))

    async def _embed_sparse(self, request: TextRequest, model: ReadyModel) -> Computed[SparseVector]:
        family = _as(SparseFamily, model)
        _check_inputs(model, request.inputs)
        _refuse_dense_options(model, request)
        prepare = partial(family.pre, request.inputs, truncate=request.truncate)
        return await self._computed(model, await self._prepared(prepare, request.inputs))

    async def _embed_multi_vector(self, request: TextRequest, model: ReadyModel) -> Computed[FloatArray]:
        family = _as(LateInteractionFamily, model)
        _check_inputs(model, request.inputs)
        _refuse_dense_options(model, request)
        prepare = partial(family.pre, request.inputs, role=request.role, truncate=request.truncate)
        return await self._computed(model, await self._prepared(prepare, request.inputs))

    async def _rerank(self, request: RerankRequest, model: ReadyModel) -> Computed[float]:
        _check_inputs(model, request.documents)
        _check_length(request.query, "The query", field="query")
        texts = (request.query, *request.documents)
        if isinstance(model.family, LateInteractionFamily):
            items = await self._prepared(partial(_query_and_documents, model.family, request), texts)
            return await self._compared(await self._computed(model, items))
        family = _as(RerankFamily, model)
        prepare = partial(family.pre, request.query, request.documents, truncate=request.truncate)
        return await self._computed(model, await self._prepared(prepare, texts))

    def close(self) -> None:
        """End the threads that tokenize; the pool is its owner's to close."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _prepared(self, prepare: Callable[[], OutcomeT], inputs: Sequence[TextInput]) -> OutcomeT:
        if sum(map(len, inputs)) <= _INLINE_CHARS:
            return prepare()
        return await asyncio.get_running_loop().run_in_executor(self._threads, prepare)

    async def _computed(self, model: ReadyModel, items: Sequence[Item]) -> Computed[OutcomeT]:
        results = await model.runner.run(items)
        return Computed(model=model.name, results=results, tokens=sum(item.token_count for item in items))

    async def _compared(self, embedded: Computed[FloatArray]) -> Computed[float]:
        query, *documents = embedded.results
        compare = partial(_scores, query, documents)
        if len(documents) <= _INLINE_DOCUMENTS:
            scores = compare()
        else:
            scores = await asyncio.get_running_loop().run_in_executor(self._threads, compare)
        return Computed(model=embedded.model, results=scores, tokens=embedded.tokens)


def _as(wanted: type[FamilyT], model: ReadyModel) -> FamilyT:
    if isinstance(model.family, wanted):
        return model.family
    raise ValidationError(f"Model {model.name!a} {_KINDS[model.family.card.family]}.", field="model")


def _check_inputs(model: ReadyModel, inputs: Sequence[TextInput]) -> None:
    most = model.family.card.limits.max_inputs
    if not inputs:
        raise ValidationError("There is no input: send at least one.")
    if len(inputs) > most:
        raise ValidationError(
            f"{len(inputs)} inputs are more than the {most} that {model.name!a} takes at a time: divide them.",
            limit=most,
        )
    for index, given in enumerate(inputs):
        _check_length(given, f"Input {index}", index=index)


def _check_length(given: TextInput, name: str, **details: Any) -> None:
    if len(given) > limits.MAX_TEXT_CHARS:
        raise InputTooLongError(
            f"{name} is longer than {limits.MAX_TEXT_CHARS} characters, and no model reads that much: shorten it.",
            limit_chars=limits.MAX_TEXT_CHARS,
            **details,
        )


def _refuse_dense_options(model: ReadyModel, request: TextRequest) -> None:
    for field in ("instruction", "dimensions"):
        if getattr(request, field) is not None:
            raise ValidationError(f"Model {model.name!a} takes no `{field}`: leave it out.", field=field)


def _query_and_documents(family: LateInteractionFamily, request: RerankRequest) -> list[LateInteractionItem]:
    try:
        query = family.pre([request.query], role=Role.QUERY, truncate=request.truncate)
    except ValidationError as error:
        # It is no document, whatever its index.
        error.details.pop("index", None)
        error.details["field"] = "query"
        raise
    return query + family.pre(request.documents, role=Role.DOCUMENT, truncate=request.truncate)


def _scores(query: FloatArray, documents: Sequence[FloatArray]) -> list[float]:
    return [max_sim(query, document) for document in documents]
