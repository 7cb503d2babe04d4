"""Discovery: which features and retriever stages this platform can serve, from its catalog and what is deployed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query

from mixpeek_ray.api.access import is_plausible_id
from mixpeek_ray.api.custom_models import may_have_custom_models
from mixpeek_ray.api.dependencies import CurrentPrincipal, NamespaceId
from mixpeek_ray.api.discovery_presenters import (
    present_extractor,
    present_extractor_discovery,
    present_namespace_extractor,
    present_stage,
    present_stage_discovery,
)
from mixpeek_ray.api.discovery_schemas import (
    ExtractorDiscovery,
    ExtractorDocument,
    ExtractorSource,
    NamespaceExtractorDocument,
    NamespaceExtractorListResponse,
    StageDefinition,
    StageDiscovery,
)
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.schemas import ErrorResponse
from mixpeek_ray.catalog.custom import custom_family
from mixpeek_ray.catalog.extractors import VECTOR_KINDS, Extractor, custom_extractor, text_extractor
from mixpeek_ray.catalog.stages import retriever_stages
from mixpeek_ray.core.errors import NotFoundError
from mixpeek_ray.core.records import DeploymentStatus, Principal

_OPEN_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (404, 422, 503)}
_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (401, 403, 404, 422, 503)}
_TAGS: list[str | Enum] = ["Discovery"]
# The contract's path, and the one that `feature-extractors` pages are linked by.
_EXTRACTOR_PATHS = ("/v1/collections/features/extractors", "/v1/feature-extractors")

ExtractorId = Annotated[str, Path(description="The extractor's id, such as text_extractor_v1.")]


def build_open_discovery_router(platform: Platform) -> APIRouter:
    """Return the routes that need no key: the built-in extractors and stages."""
    router = APIRouter(tags=_TAGS, responses=_OPEN_ERRORS)

    async def list_extractors() -> list[ExtractorDocument]:
        """List the built-in feature extractors."""
        return [present_extractor(extractor) for extractor in await _builtin_extractors(platform)]

    async def get_extractor(feature_extractor_id: ExtractorId) -> ExtractorDocument:
        """Get one built-in feature extractor."""
        return present_extractor(_with_id(feature_extractor_id, await _builtin_extractors(platform)))

    for path in _EXTRACTOR_PATHS:
        router.add_api_route(path, list_extractors)
        router.add_api_route(path + "/{feature_extractor_id}", get_extractor)

    @router.get("/v1/retrievers/stages")
    async def list_stages() -> list[StageDefinition]:
        """List the retriever stages that this platform's models can serve."""
        return [present_stage(stage) for stage in retriever_stages(await platform.builtin_models())]

    return router


def build_discovery_router(platform: Platform) -> APIRouter:
    """Return the routes under ``/v1/discovery``, and a namespace's extractors."""
    router = APIRouter(prefix="/v1", tags=_TAGS, responses=_ERRORS)

    @router.get("/discovery/extractors")
    async def discover_extractors(_: CurrentPrincipal) -> list[ExtractorDiscovery]:
        """List the built-in feature extractors, in short, each with a call that works."""
        return [present_extractor_discovery(extractor) for extractor in await _builtin_extractors(platform)]

    @router.get("/discovery/stages")
    async def discover_stages(_: CurrentPrincipal) -> list[StageDiscovery]:
        """List the retriever stages, each with parameters that work."""
        return [present_stage_discovery(stage) for stage in retriever_stages(await platform.builtin_models())]

    @router.get("/namespaces/{namespace_id}/extractors")
    async def list_namespace_extractors(
        principal: CurrentPrincipal,
        namespace_id: NamespaceId,
        source: Annotated[Literal["builtin", "custom", "all"] | None, Query(description="Default: all.")] = None,
        include_disabled: Annotated[bool, Query(description="Also custom models that are not deployed.")] = False,
    ) -> NamespaceExtractorListResponse:
        """List the built-in extractors, and the namespace's embedding models, each an extractor of its own."""
        found = await _namespace_extractors(platform, principal, namespace_id, include_disabled=include_disabled)
        listed = [present_namespace_extractor(extractor) for extractor in found]
        if source in tuple(ExtractorSource):
            listed = [extractor for extractor in listed if extractor.source == source]
        builtin_count = sum(extractor.source is ExtractorSource.BUILTIN for extractor in listed)
        return NamespaceExtractorListResponse(
            extractors=listed,
            total=len(listed),
            namespace_id=namespace_id,
            builtin_count=builtin_count,
            custom_count=len(listed) - builtin_count,
        )

    @router.get("/namespaces/{namespace_id}/extractors/{extractor_id}")
    async def get_namespace_extractor(
        principal: CurrentPrincipal, namespace_id: NamespaceId, extractor_id: ExtractorId
    ) -> NamespaceExtractorDocument:
        """Get one extractor, built-in or a custom model of the namespace, deployed or not."""
        found = await _namespace_extractors(platform, principal, namespace_id, include_disabled=True)
        return present_namespace_extractor(_with_id(extractor_id, found))

    return router


async def _builtin_extractors(platform: Platform) -> list[Extractor]:
    extractor = text_extractor(await platform.builtin_models())
    return [] if extractor is None else [extractor]


async def _namespace_extractors(
    platform: Platform, principal: Principal, namespace_id: str, *, include_disabled: bool
) -> list[Extractor]:
    # The models are asked for whatever is shown of them: that is also what refuses a foreign namespace.
    builtin, models = await asyncio.gather(_builtin_extractors(platform), platform.list_models(principal, namespace_id))
    if not may_have_custom_models(principal):
        return builtin
    shown = [state for state in models if include_disabled or state.status is DeploymentStatus.DEPLOYED]
    families = [(state, custom_family(state)) for state in shown]
    return builtin + [
        custom_extractor(state, family) for state, family in families if family is not None and family in VECTOR_KINDS
    ]


def _with_id(extractor_id: str, extractors: Sequence[Extractor]) -> Extractor:
    for extractor in extractors:
        if extractor.extractor_id == extractor_id:
            return extractor
    shown = f" {extractor_id!a}" if is_plausible_id(extractor_id) else ""
    raise NotFoundError(f"There is no feature extractor{shown}: list them to see which there are.")
