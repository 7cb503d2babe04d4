"""Resumable uploads: create, send parts, look what has arrived, confirm, abort."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from mixpeek_ray.api.confirmation import confirm_upload
from mixpeek_ray.api.context import context_of
from mixpeek_ray.api.dependencies import (
    CurrentPrincipal,
    NamedNamespace,
    UploadReference,
    document_namespace_header,
    document_namespace_path,
)
from mixpeek_ray.api.form import UploadFormBuilder
from mixpeek_ray.api.part_upload import expected_digest, received_part
from mixpeek_ray.api.ports import Platform
from mixpeek_ray.api.schemas import ErrorResponse
from mixpeek_ray.api.upload import body_chunks
from mixpeek_ray.api.upload_presenters import (
    present_opened_upload,
    present_outcome,
    present_part,
    present_progress,
)
from mixpeek_ray.api.upload_schemas import (
    ConfirmModelUploadRequest,
    ConfirmModelUploadResponse,
    CreateModelUploadRequest,
    ModelPresignedURLResponse,
    PartResponse,
    UploadAbortResponse,
    UploadListResponse,
    UploadResponse,
)
from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.core.records import Principal, UploadForm
from mixpeek_ray.core.uploads import UploadAnnouncement
from mixpeek_ray.store.base import BlobStore

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 408, 409, 413, 422, 503, 507)
}
_CONTRACT_PREFIX = "/v1/models/uploads"
_NAMESPACED_PREFIX = "/v1/namespaces/{namespace_id}/models/uploads"
_PART_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    "parameters": [
        {
            "name": "Content-Digest",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "RFC 9530: sha-256=:<base64>:, checked before the part is kept.",
        }
    ],
}
_NOTHING_SAID = ConfirmModelUploadRequest()


def build_upload_routers(
    platform: Platform, store: BlobStore, *, new_upload_key: Callable[[], str], max_part_bytes: int
) -> Iterator[APIRouter]:
    """Yield the contract's routes, which take a namespace from ``X-Namespace``, and their twins below a namespace."""
    for prefix, documented in (
        (_CONTRACT_PREFIX, document_namespace_header),
        (_NAMESPACED_PREFIX, document_namespace_path),
    ):
        router = APIRouter(
            prefix=prefix, tags=["Resumable uploads"], responses=_ERRORS, dependencies=[Depends(documented)]
        )
        _add_session_routes(router, platform, max_part_bytes=max_part_bytes)
        _add_part_route(router, platform, store, new_upload_key=new_upload_key, max_part_bytes=max_part_bytes)
        yield router


def _add_session_routes(router: APIRouter, platform: Platform, *, max_part_bytes: int) -> None:
    @router.post("")
    async def create_upload(
        request: Request, principal: CurrentPrincipal, named: NamedNamespace, body: CreateModelUploadRequest
    ) -> ModelPresignedURLResponse:
        """Open an upload. Send its parts, in any order and as often as need be, then confirm it."""
        namespace_id = named or await _only_namespace(platform, principal)
        announcement = UploadAnnouncement(form=_form(body), size_bytes=body.file_size_bytes, sha256=body.sha256)
        session = await platform.resumable.create(principal, namespace_id, announcement)
        base_url = str(request.base_url).rstrip("/")
        parts_path = f"{_CONTRACT_PREFIX}/{session.upload_id}/parts"
        expires_at = min(session.created_at + timedelta(seconds=body.presigned_url_expiration), session.expires_at)
        query = await platform.sign_url(principal, f"{parts_path}/1", expires_at)
        return present_opened_upload(
            session,
            presigned_url=f"{base_url}{parts_path}/1?{query}",
            expires_at=expires_at,
            parts_url=f"{base_url}{parts_path}",
            max_part_bytes=max_part_bytes,
        )

    @router.get("")
    async def list_uploads(principal: CurrentPrincipal, named: NamedNamespace) -> UploadListResponse:
        """List the uploads that were not confirmed, newest first."""
        uploads = [present_progress(progress) for progress in await platform.resumable.list(principal, named)]
        return UploadListResponse(uploads=uploads, total=len(uploads))

    @router.get("/{upload_id}")
    async def get_upload(_: CurrentPrincipal, ref: UploadReference) -> UploadResponse:
        """Tell which parts have arrived: after an interruption, send the others."""
        return UploadResponse(upload=present_progress(await platform.resumable.find(ref)))

    @router.delete("/{upload_id}")
    async def abort_upload(_: CurrentPrincipal, ref: UploadReference) -> UploadAbortResponse:
        """Abort an upload and remove its parts. A model that it made already stays."""
        await platform.resumable.abort(ref)
        return UploadAbortResponse(upload_id=ref.upload_id, message=f"Upload {ref.upload_id} was removed.")

    @router.post("/{upload_id}/confirm")
    async def confirm(
        principal: CurrentPrincipal, ref: UploadReference, body: ConfirmModelUploadRequest = _NOTHING_SAID
    ) -> ConfirmModelUploadResponse:
        """Make the parts a model version. Confirming again answers the same; what is missing may be sent before."""
        sha256 = body.etag.strip().strip('"').lower() if body.etag else None
        confirmed = await confirm_upload(platform, principal, ref, size_bytes=body.file_size_bytes, sha256=sha256)
        return present_outcome(confirmed)


def _add_part_route(
    router: APIRouter,
    platform: Platform,
    store: BlobStore,
    *,
    new_upload_key: Callable[[], str],
    max_part_bytes: int,
) -> None:
    @router.put("/{upload_id}/parts/{number}", openapi_extra=_PART_BODY)
    async def put_part(
        request: Request,
        response: Response,
        _: CurrentPrincipal,
        ref: UploadReference,
        number: Annotated[int, Path(ge=1, le=limits.MAX_UPLOAD_PARTS, description="Counts from 1.")],
    ) -> PartResponse:
        """Send one part as the body. The same number again replaces it."""
        expected_sha256 = expected_digest(request.headers.getlist("content-digest"))
        room_bytes = await platform.resumable.admit_part(ref, number)
        async with received_part(
            body_chunks(context_of(request.scope).receive or request.receive),
            store=store,
            key=new_upload_key(),
            max_bytes=min(room_bytes, max_part_bytes),
            expected_sha256=expected_sha256,
        ) as received:
            part = await platform.resumable.add_part(ref, number, received)
        response.headers["ETag"] = f'"{part.sha256}"'
        return present_part(ref.upload_id, part)


def _form(body: CreateModelUploadRequest) -> UploadForm:
    resources = body.resource_requirements
    fields = {
        "name": body.name,
        "version": body.version,
        "model_format": body.model_format,
        "framework": body.framework,
        "task_type": body.task_type,
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "memory_gb": resources.memory / limits.GIB,
    }
    builder = UploadFormBuilder()
    for name, value in fields.items():
        if value is not None:
            builder.add(name, str(value))
    return builder.build()


async def _only_namespace(platform: Platform, principal: Principal) -> str:
    namespaces = await platform.list_namespaces(principal)
    if len(namespaces) == 1:
        return namespaces[0].namespace_id
    message = f"The organization has {len(namespaces)} namespaces: name one in the header X-Namespace."
    found = {"loc": ["header", "X-Namespace"], "msg": message, "type": "missing"}
    raise ValidationError(message, validation_errors=[found])
