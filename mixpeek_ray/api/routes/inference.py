"""``POST /v1/inference``: one route for every model, which the body names."""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends, Request, Response

from mixpeek_ray.api.custom_families import CustomFamilies
from mixpeek_ray.api.dependencies import CurrentPrincipal, NamedNamespace, document_namespace_header
from mixpeek_ray.api.disconnect import WhileConnected
from mixpeek_ray.api.inference_body import RawInferenceRequest, RawInferenceResponse
from mixpeek_ray.api.inference_ports import TextInference
from mixpeek_ray.api.inference_presenters import json_answer
from mixpeek_ray.api.inference_request import INFERENCE_ERRORS, documented, read_body
from mixpeek_ray.api.inference_target import BuiltinTarget, Targets
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.raw_inference import run
from mixpeek_ray.catalog.catalog import Catalog


def build_inference_router(platform: Platform, inference: TextInference, catalog: Catalog) -> APIRouter:
    """Return ``/v1/inference``. Raises ``InvalidCatalogError`` when two models would be one feature."""
    router = APIRouter(prefix="/v1", tags=["Inference"], responses=INFERENCE_ERRORS)
    targets, custom = Targets(catalog), CustomFamilies(platform)

    @router.post(
        "/inference",
        response_model=RawInferenceResponse,
        openapi_extra=documented(RawInferenceRequest),
        dependencies=[Depends(document_namespace_header)],
    )
    async def infer(request: Request, principal: CurrentPrincipal, namespace_id: NamedNamespace) -> Response:
        """Run any built-in or custom text model: embeddings of `text` or `texts`, or scores of `documents`."""
        body = await read_body(request, RawInferenceRequest)
        started_s = time.perf_counter()
        target = targets.find(body, namespace_id)
        async with WhileConnected(request.receive):
            if isinstance(target, BuiltinTarget):
                family = target.card.family
            else:
                family = await custom.find(principal, target)
            result = await run(inference, principal, target, family, body)
        latency_s = time.perf_counter() - started_s
        return json_answer(
            {
                "data": result.data,
                "provider": target.provider,
                "model": result.model,
                "latency_ms": latency_s * 1_000,
                "tokens_used": {"prompt": result.tokens, "total": result.tokens},
                "cached": False,
            }
        )

    return router
