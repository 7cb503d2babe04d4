"""``POST /v1/inference``: one route for every model, which the body names."""

from __future__ import annotations

import time
from dataclasses import replace

from fastapi import APIRouter, Depends, Request, Response

from mixpeek_ray.api.alias_resolver import AliasResolver
from mixpeek_ray.api.custom_families import CustomFamilies
from mixpeek_ray.api.custom_models import MODEL_NOT_FOUND, may_have_custom_models
from mixpeek_ray.api.dependencies import CurrentPrincipal, NamedNamespace, document_namespace_header
from mixpeek_ray.api.disconnect import WhileConnected
from mixpeek_ray.api.inference_body import RawInferenceRequest, RawInferenceResponse
from mixpeek_ray.api.inference_ports import TextInference
from mixpeek_ray.api.inference_presenters import answering_model, json_answer
from mixpeek_ray.api.inference_request import INFERENCE_ERRORS, documented, read_body
from mixpeek_ray.api.inference_target import BuiltinTarget, CustomTarget, Targets
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.raw_inference import run
from mixpeek_ray.api.sticky import MODEL_HEADER, sticky_of
from mixpeek_ray.catalog.catalog import Catalog
from mixpeek_ray.core.aliases import parse_reference
from mixpeek_ray.core.errors import ModelNotFoundError
from mixpeek_ray.core.records import Principal


def build_inference_router(platform: Platform, inference: TextInference, catalog: Catalog) -> APIRouter:
    """Return ``/v1/inference``. Raises ``InvalidCatalogError`` when two models would be one feature."""
    router = APIRouter(prefix="/v1", tags=["Inference"], responses=INFERENCE_ERRORS)
    targets, custom = Targets(catalog), CustomFamilies(platform)
    versions = AliasResolver(lambda principal, ref: platform.aliases.route(principal, ref))

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
                target = await _version(versions, principal, target, sticky_of(request))
                family = await custom.find(principal, target)
            result = await run(inference, principal, target, family, body)
        latency_s = time.perf_counter() - started_s
        answer = json_answer(
            {
                "data": result.data,
                "provider": target.provider,
                "model": result.model,
                "latency_ms": latency_s * 1_000,
                "tokens_used": {"prompt": result.tokens, "total": result.tokens},
                "cached": False,
            }
        )
        answer.headers[MODEL_HEADER] = answering_model(result.model)
        return answer

    return router


async def _version(
    versions: AliasResolver, principal: Principal, target: CustomTarget, sticky: str | None
) -> CustomTarget:
    """Return the version that ``target`` means for a request: itself, or one of those that its alias points to."""
    ref = parse_reference(target.namespace_id, target.model_id)
    if ref is None:
        return target
    if not may_have_custom_models(principal):
        raise ModelNotFoundError(MODEL_NOT_FOUND)
    return replace(target, model_id=await versions.choose(principal, ref, sticky))
