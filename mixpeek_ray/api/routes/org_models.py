"""``/v1/models``: what can be used, for OpenAI's clients, and the organisation's own models, for the contract's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from mixpeek_ray.api.access import is_plausible_id
from mixpeek_ray.api.alias_resolver import AliasResolver
from mixpeek_ray.api.custom_models import MODEL_NOT_FOUND, custom_models, find_custom_model, may_have_custom_models
from mixpeek_ray.api.dependencies import CurrentPrincipal, NamedNamespace, document_namespace_header
from mixpeek_ray.api.org_model_presenters import (
    present_builtin_detail,
    present_custom_detail,
    present_org_model,
    present_usable_builtin,
    present_usable_custom,
)
from mixpeek_ray.api.org_model_schemas import OrgModelDetailResponse, OrgModelListResponse
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.schemas import ErrorResponse
from mixpeek_ray.api.sticky import MODEL_HEADER, sticky_of
from mixpeek_ray.catalog.availability import BuiltinModel
from mixpeek_ray.core.aliases import AliasRef, parse_reference
from mixpeek_ray.core.errors import (
    AliasNotFoundError,
    ModelNotFoundError,
    NamespaceNotFoundError,
    ValidationError,
)
from mixpeek_ray.core.records import DeploymentStatus, ModelState, Principal

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (401, 403, 404, 422, 503)}


def build_org_models_router(platform: Platform) -> APIRouter:
    """Return ``/v1/models`` and what is below it, but for the uploads: their router comes first."""
    router = APIRouter(prefix="/v1/models", tags=["Models"], responses=_ERRORS)
    versions = AliasResolver(lambda principal, ref: platform.aliases.route(principal, ref))

    async def find(principal: Principal, namespace_id: str, reference: str, sticky: str | None) -> ModelState:
        alias = parse_reference(namespace_id, reference)
        if alias is not None:
            reference = await _version(versions, principal, alias, sticky)
        elif not is_plausible_id(reference):
            raise ModelNotFoundError(MODEL_NOT_FOUND)
        return await find_custom_model(platform, principal, namespace_id=namespace_id, model_id=reference)

    @router.get("")
    async def list_usable_models(principal: CurrentPrincipal) -> OrgModelListResponse:
        """List the built-in models and the organization's deployed ones (`data`), and all its own (`models`)."""
        organization_id = principal.organization.organization_id
        builtin, custom = await asyncio.gather(platform.builtin_models(), custom_models(platform, principal))
        deployed = [state for state in custom if state.status is DeploymentStatus.DEPLOYED]
        return OrgModelListResponse(
            data=[
                *(present_usable_builtin(model) for model in builtin),
                *(present_usable_custom(state, organization_id) for state in deployed),
            ],
            models=[present_org_model(state) for state in custom],
            total=len(custom),
            organization_id=organization_id,
        )

    # Two routes rather than one path of any depth, which would answer for the uploads' paths too.
    @router.get("/{owner}/{model_id}")
    async def get_model_of(
        request: Request, response: Response, principal: CurrentPrincipal, owner: str, model_id: str
    ) -> OrgModelDetailResponse:
        """Get a custom model as `{namespace}/{model_id}` or by an alias, or a built-in one as its hub repository."""
        builtin = _named(f"{owner}/{model_id}", await platform.builtin_models())
        if builtin is not None:
            return present_builtin_detail(builtin)
        if not is_plausible_id(owner):
            raise ModelNotFoundError(MODEL_NOT_FOUND)
        state = await find(principal, owner, model_id, sticky_of(request))
        response.headers[MODEL_HEADER] = state.manifest.model_id
        return present_custom_detail(state, principal.organization.organization_id)

    @router.get("/{model_id}", dependencies=[Depends(document_namespace_header)])
    async def get_usable_model(
        request: Request, response: Response, principal: CurrentPrincipal, namespace_id: NamedNamespace, model_id: str
    ) -> OrgModelDetailResponse:
        """Get a built-in model by its name or alias, or a custom one by its id, in X-Namespace or where it is.

        A custom one also as `{name}@{alias}`, in X-Namespace.
        """
        builtin = _named(model_id, await platform.builtin_models())
        if builtin is not None:
            return present_builtin_detail(builtin)
        if namespace_id is not None:
            state = await find(principal, namespace_id, model_id, sticky_of(request))
        elif is_plausible_id(model_id):
            state = await _only_custom_model(platform, principal, model_id)
        else:
            raise ModelNotFoundError(MODEL_NOT_FOUND)
        response.headers[MODEL_HEADER] = state.manifest.model_id
        return present_custom_detail(state, principal.organization.organization_id)

    return router


async def _version(versions: AliasResolver, principal: Principal, alias: AliasRef, sticky: str | None) -> str:
    if not may_have_custom_models(principal):
        raise ModelNotFoundError(MODEL_NOT_FOUND)
    try:
        return await versions.choose(principal, alias, sticky)
    except (AliasNotFoundError, NamespaceNotFoundError):
        raise ModelNotFoundError(MODEL_NOT_FOUND) from None


def _named(name: str, models: Sequence[BuiltinModel]) -> BuiltinModel | None:
    return next((model for model in models if name in (model.card.name, *model.card.aliases)), None)


async def _only_custom_model(platform: Platform, principal: Principal, model_id: str) -> ModelState:
    found = [state for state in await custom_models(platform, principal) if state.manifest.model_id == model_id]
    if not found:
        raise ModelNotFoundError(MODEL_NOT_FOUND)
    if len(found) > 1:
        message = f"Several namespaces have a model {model_id}: name one in the header X-Namespace."
        missing = {"loc": ["header", "X-Namespace"], "msg": message, "type": "missing"}
        raise ValidationError(message, validation_errors=[missing])
    return found[0]
