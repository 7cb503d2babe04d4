"""The custom models that an organisation may use, for the routes that list or run them beside the built-in ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mixpeek_ray.api.ports import Platform
from mixpeek_ray.core.errors import ModelNotFoundError, NotFoundError
from mixpeek_ray.core.records import ModelState, Principal, Tier

# The same for what nobody has, what somebody else has, and what the organisation's tier does not include.
MODEL_NOT_FOUND = (
    "There is no such model: GET /v1/models lists those you can use. A custom model is {namespace}/{model_id}, or its "
    "id alone with the namespace in X-Namespace."
)


async def custom_models(platform: Platform, principal: Principal) -> Sequence[ModelState]:
    """Return all custom models of the principal's organisation, by namespace, the newest of each first."""
    if not may_have_custom_models(principal):
        return ()
    namespaces = await platform.list_namespaces(principal)
    listed = await asyncio.gather(
        *(platform.list_models(principal, namespace.namespace_id) for namespace in namespaces)
    )
    return [state for models in listed for state in models]


async def find_custom_model(
    platform: Platform, principal: Principal, *, namespace_id: str, model_id: str
) -> ModelState:
    """Return a custom model that the principal may use. Raises ``ModelNotFoundError`` for any other alike."""
    if not may_have_custom_models(principal):
        raise ModelNotFoundError(MODEL_NOT_FOUND)
    try:
        return await platform.get_model(principal, namespace_id, model_id)
    except NotFoundError:
        raise ModelNotFoundError(MODEL_NOT_FOUND) from None


def may_have_custom_models(principal: Principal) -> bool:
    """Tell whether the organisation's tier includes custom models."""
    return principal.organization.tier is Tier.ENTERPRISE
