"""Custom models: upload, list, get, deploy, undeploy, delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from mixpeek_ray.api.alias_resolver import AliasResolver
from mixpeek_ray.api.context import body_of
from mixpeek_ray.api.dependencies import CurrentPrincipal, ModelId, ModelReference, NamespaceId
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.presenters import (
    present_deploy,
    present_list_item,
    present_model,
    present_status,
    present_upload,
    served_by,
)
from mixpeek_ray.api.schemas import (
    ErrorResponse,
    ModelDeleteResponse,
    ModelDeployResponse,
    ModelDetailResponse,
    ModelListResponse,
    ModelUploadResponse,
)
from mixpeek_ray.api.shared_calls import SharedCalls
from mixpeek_ray.api.sticky import MODEL_HEADER, sticky_of
from mixpeek_ray.api.upload import received_upload
from mixpeek_ray.core import limits
from mixpeek_ray.core.aliases import AliasRef
from mixpeek_ray.core.placement import PoolLimit
from mixpeek_ray.core.records import ModelFormat, Principal
from mixpeek_ray.core.semver import latest_ids
from mixpeek_ray.store.base import BlobStore

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 408, 409, 413, 422, 503, 507)
}
# FastAPI must not read the form itself: it would lie on this machine's disk, whole, before anything of ours runs.
_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "name", "version", "model_format"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "The weights, as .tar.gz."},
                        "name": {"type": "string"},
                        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
                        "model_format": {"type": "string", "enum": [str(known) for known in ModelFormat]},
                        "framework": {"type": "string"},
                        "task_type": {"type": "string"},
                        "num_cpus": {"type": "number", "default": limits.DEFAULT_CPUS},
                        "num_gpus": {"type": "integer", "default": 0},
                        "memory_gb": {"type": "number", "default": limits.DEFAULT_MEMORY_BYTES / limits.GIB},
                    },
                }
            }
        },
    }
}


async def _listing(platform: Platform, principal: Principal, namespace_id: str, name: str | None) -> str:
    states = await platform.list_models(principal, namespace_id)
    latest = latest_ids(state.manifest for state in states)
    models = [
        present_list_item(state, latest=state.manifest.model_id in latest)
        for state in states
        if name in (None, state.manifest.name)
    ]
    return ModelListResponse(models=models, total=len(models), namespace_id=namespace_id).model_dump_json()


def build_models_router(
    platform: Platform,
    store: BlobStore,
    *,
    new_upload_key: Callable[[], str],
    max_upload_bytes: int,
    pool_limit: PoolLimit,
) -> APIRouter:
    """Return the routes under ``/v1/namespaces/{namespace_id}/models``; ``pool_limit``: what the pool serves."""
    router = APIRouter(prefix="/v1/namespaces/{namespace_id}/models", tags=["Custom models"], responses=_ERRORS)
    # Fifty models take milliseconds to fetch and to write, for however many callers at a time.
    listings = SharedCalls[tuple[str, str, str | None], str]()
    versions = AliasResolver(lambda principal, ref: platform.aliases.route(principal, ref))

    @router.post("", openapi_extra=_UPLOAD_BODY)
    async def upload_model(
        request: Request, principal: CurrentPrincipal, namespace_id: NamespaceId
    ) -> ModelUploadResponse:
        """Upload a `.tar.gz` with a model's weights. The same bytes again answer 200 with the same id."""
        await platform.admit_upload(principal, namespace_id)
        async with received_upload(
            body_of(request.scope),
            request.headers.get("content-type", ""),
            store=store,
            key=new_upload_key(),
            max_archive_bytes=max_upload_bytes,
        ) as upload:
            result = await platform.commit_upload(principal, namespace_id, upload.form, upload.archive)
        return present_upload(result)

    @router.get("", response_model=ModelListResponse)
    async def list_models(
        principal: CurrentPrincipal,
        namespace_id: NamespaceId,
        name: Annotated[str | None, Query(description="Only the versions of the model called so.")] = None,
    ) -> Response:
        """List the namespace's models, newest first; `latest` is the highest version of its name, deployed or not."""
        asked = (principal.organization.organization_id, namespace_id, name)
        body = await listings.get(asked, lambda: _listing(platform, principal, namespace_id, name))
        return Response(body, media_type="application/json")

    @router.get("/{model_id}")
    async def get_model(
        request: Request,
        response: Response,
        principal: CurrentPrincipal,
        namespace_id: NamespaceId,
        reference: ModelReference,
    ) -> ModelDetailResponse:
        """Get one model, with what its archive holds. An alias means one of its versions, as for a request."""
        if isinstance(reference, AliasRef):
            model_id = await versions.choose(principal, reference, sticky_of(request))
        else:
            model_id = reference
        response.headers[MODEL_HEADER] = model_id
        state = await platform.get_model(principal, namespace_id, model_id)
        return ModelDetailResponse(model=present_model(state, served_by(state, pool_limit)))

    @router.delete("/{model_id}")
    async def delete_model(
        principal: CurrentPrincipal, namespace_id: NamespaceId, model_id: ModelId
    ) -> ModelDeleteResponse:
        """Delete a model version for good."""
        await platform.delete(principal, namespace_id, model_id)
        return ModelDeleteResponse(model_id=model_id, message=f"Model {model_id} was deleted.")

    @router.post("/{model_id}/deploy")
    async def deploy_model(
        principal: CurrentPrincipal,
        namespace_id: NamespaceId,
        model_id: ModelId,
        wait: Annotated[bool, Query(description="False: answer `pending` at once and deploy behind.")] = True,
    ) -> ModelDeployResponse:
        """Bring a model's weights into the cluster, so that every worker can view them."""
        return present_deploy(await platform.deploy(principal, namespace_id, model_id, wait=wait))

    @router.post("/{model_id}/undeploy")
    async def undeploy_model(
        principal: CurrentPrincipal, namespace_id: NamespaceId, model_id: ModelId
    ) -> ModelDeployResponse:
        """Release a model's weights; the model stays uploaded."""
        state = await platform.undeploy(principal, namespace_id, model_id)
        return present_status(state, f"Model {model_id} is no longer deployed.")

    return router
