"""Reranking: documents in the order of their relevance to a query."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mixpeek_ray.api.dependencies import CurrentPrincipal
from mixpeek_ray.api.disconnect import WhileConnected
from mixpeek_ray.api.inference_ports import TextInference
from mixpeek_ray.api.inference_presenters import present_ranking
from mixpeek_ray.api.inference_request import INFERENCE_ERRORS, blaming, documented, read_body
from mixpeek_ray.api.inference_responses import RerankResponse
from mixpeek_ray.api.inference_schemas import RerankBody
from mixpeek_ray.api.sticky import sticking


def build_rerank_router(inference: TextInference, *, version: str = "v1") -> APIRouter:
    """Return ``/{version}/rerank``: Cohere's clients of either version look for theirs."""
    router = APIRouter(prefix=f"/{version}", tags=["Inference"], responses=INFERENCE_ERRORS)

    @router.post("/rerank", response_model=RerankResponse, openapi_extra=documented(RerankBody))
    async def rerank(request: Request, principal: CurrentPrincipal) -> Response:
        """Sort documents by their relevance to a query. Cohere's clients work as they are."""
        body = await read_body(request, RerankBody)
        async with WhileConnected(request.receive):
            with blaming("documents"):
                computed = await inference.rerank(principal, sticking(body.asked(), request))
        return present_ranking(computed, body, api_version=version.removeprefix("v"))

    return router
