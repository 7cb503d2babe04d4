"""Embeddings: dense, sparse, multi-vector, and all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mixpeek_ray.api.dependencies import CurrentPrincipal
from mixpeek_ray.api.disconnect import WhileConnected
from mixpeek_ray.api.inference_ports import Computed, TextInference
from mixpeek_ray.api.inference_presenters import Representation, present_embeddings, present_hybrid_embeddings
from mixpeek_ray.api.inference_request import INFERENCE_ERRORS, blaming, documented, read_body
from mixpeek_ray.api.inference_responses import (
    EmbeddingsResponse,
    HybridEmbeddingsResponse,
    MultiVectorEmbeddingsResponse,
    SparseEmbeddingsResponse,
)
from mixpeek_ray.api.inference_schemas import (
    EmbeddingsRequest,
    HybridEmbeddingsRequest,
    MultiVectorEmbeddingsRequest,
    SparseEmbeddingsRequest,
)
from mixpeek_ray.api.sticky import sticking
from mixpeek_ray.core.errors import MixpeekError, ValidationError
from mixpeek_ray.core.records import Principal


def build_embeddings_router(inference: TextInference) -> APIRouter:
    """Return ``/v1/embeddings`` and the routes below it."""
    router = APIRouter(prefix="/v1/embeddings", tags=["Inference"], responses=INFERENCE_ERRORS)

    @router.post("", response_model=EmbeddingsResponse, openapi_extra=documented(EmbeddingsRequest))
    async def create_embeddings(request: Request, principal: CurrentPrincipal) -> Response:
        """Embed texts, one vector each. OpenAI's clients work as they are."""
        body = await read_body(request, EmbeddingsRequest)
        async with WhileConnected(request.receive):
            with blaming("input"):
                computed = await inference.embed(principal, sticking(body.asked(), request))
        return present_embeddings(computed, "dense", body.encoding_format)

    @router.post("/sparse", response_model=SparseEmbeddingsResponse, openapi_extra=documented(SparseEmbeddingsRequest))
    async def create_sparse_embeddings(request: Request, principal: CurrentPrincipal) -> Response:
        """Embed texts, one weight each for the words of a vocabulary."""
        body = await read_body(request, SparseEmbeddingsRequest)
        async with WhileConnected(request.receive):
            with blaming("input"):
                computed = await inference.embed_sparse(principal, sticking(body.asked(), request))
        return present_embeddings(computed, "sparse", body.encoding_format)

    @router.post(
        "/multi-vector",
        response_model=MultiVectorEmbeddingsResponse,
        openapi_extra=documented(MultiVectorEmbeddingsRequest),
    )
    async def create_multi_vector_embeddings(request: Request, principal: CurrentPrincipal) -> Response:
        """Embed texts, one vector a token each."""
        body = await read_body(request, MultiVectorEmbeddingsRequest)
        async with WhileConnected(request.receive):
            with blaming("input"):
                computed = await inference.embed_multi_vector(principal, sticking(body.asked(), request))
        return present_embeddings(computed, "multi_vector", body.encoding_format)

    @router.post("/hybrid", response_model=HybridEmbeddingsResponse, openapi_extra=documented(HybridEmbeddingsRequest))
    async def create_hybrid_embeddings(request: Request, principal: CurrentPrincipal) -> Response:
        """Embed the same texts as dense, sparse and multi-vector at once: what hybrid search needs."""
        body = await read_body(request, HybridEmbeddingsRequest)
        async with WhileConnected(request.receive):
            computed = await _together(inference, principal, body, request)
        return present_hybrid_embeddings(computed, body.encoding_format)

    return router


async def _together(
    inference: TextInference, principal: Principal, body: HybridEmbeddingsRequest, request: Request
) -> dict[Representation, Computed[Any]]:
    """Return each representation that ``body`` names a model for; the first failure ends the others."""
    models = body.models
    if models.dense is None:
        _refuse_dense_options(body)
    asked: dict[Representation, Coroutine[Any, Any, Computed[Any]]] = {}
    if models.dense is not None:
        asked["dense"] = inference.embed(principal, sticking(body.asked_of_dense(models.dense), request))
    if models.sparse is not None:
        asked["sparse"] = inference.embed_sparse(principal, sticking(body.asked(models.sparse), request))
    if models.multi_vector is not None:
        asked["multi_vector"] = inference.embed_multi_vector(
            principal, sticking(body.asked(models.multi_vector), request)
        )
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {kind: group.create_task(_one_of_several(kind, computing)) for kind, computing in asked.items()}
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return {kind: task.result() for kind, task in tasks.items()}


def _refuse_dense_options(body: HybridEmbeddingsRequest) -> None:
    for field, value in (("instruction", body.instruction), ("dimensions", body.dimensions)):
        if value is not None:
            raise ValidationError(f"`{field}` belongs to models.dense, which is not named: leave it out.", field=field)


async def _one_of_several(kind: Representation, computing: Coroutine[Any, Any, Computed[Any]]) -> Computed[Any]:
    try:
        with blaming("input"):
            return await computing
    except MixpeekError as error:
        if error.details.get("field") == "model":
            error.details["field"] = f"models.{kind}"
        raise
