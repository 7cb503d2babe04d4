"""The steps of resumable uploads, carried out through the registry actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixpeek_ray.core.ids import new_upload_id
from mixpeek_ray.core.records import Principal, UploadedArchive
from mixpeek_ray.core.uploads import (
    UploadAnnouncement,
    UploadOutcome,
    UploadPart,
    UploadProgress,
    UploadRef,
    UploadSession,
)
from mixpeek_ray.registry.calls import call, call_while_alive


class UploadsClient:
    """Implements ``api.ports.ResumableUploads`` over the registry actor."""

    def __init__(self, registry: Any, *, timeout_s: float) -> None:
        self._registry = registry
        self._timeout_s = timeout_s

    async def create(self, principal: Principal, namespace_id: str, announcement: UploadAnnouncement) -> UploadSession:
        """Open an upload."""
        organization_id = principal.organization.organization_id
        # The id is made here, so that a call that is repeated opens one upload.
        opened: UploadSession = await self._call(
            "create_upload", new_upload_id(), organization_id, namespace_id, announcement
        )
        return opened

    async def list(self, principal: Principal, namespace_id: str | None) -> Sequence[UploadProgress]:
        """Return the uploads that were not confirmed, newest first."""
        organization_id = principal.organization.organization_id
        uploads: Sequence[UploadProgress] = await self._call("list_uploads", organization_id, namespace_id)
        return uploads

    async def find(self, ref: UploadRef) -> UploadProgress:
        """Return an upload with what has arrived of it."""
        found: UploadProgress = await self._call("find_upload", ref)
        return found

    async def admit_part(self, ref: UploadRef, number: int) -> int:
        """Return how many bytes a part may have."""
        room_bytes: int = await self._call("admit_part", ref, number)
        return room_bytes

    async def add_part(self, ref: UploadRef, number: int, archive: UploadedArchive) -> UploadPart:
        """Make a blob a part of an upload."""
        part: UploadPart = await self._patient_call("add_part", ref, number, archive)
        return part

    async def assemble(
        self, ref: UploadRef, size_bytes: int | None, sha256: str | None
    ) -> tuple[UploadProgress, UploadedArchive | None]:
        """Join an upload's parts to the archive that is to be committed."""
        progress, archive = await self._patient_call("assemble_upload", ref, size_bytes, sha256)
        return progress, archive

    async def finish(self, ref: UploadRef, outcome: UploadOutcome) -> UploadProgress:
        """Record how an upload ended."""
        finished: UploadProgress = await self._patient_call("finish_upload", ref, outcome)
        return finished

    async def abort(self, ref: UploadRef) -> None:
        """Forget an upload and remove its bytes."""
        await self._patient_call("abort_upload", ref)

    async def _call(self, method: str, *arguments: Any) -> Any:
        return await call(getattr(self._registry, method).remote(*arguments), self._timeout_s)

    async def _patient_call(self, method: str, *arguments: Any) -> Any:
        # Moves bytes within the store, for minutes if there are 10 GB; a registry that is gone shows in seconds.
        answer = getattr(self._registry, method).remote(*arguments)
        return await call_while_alive(answer, lambda: self._call("ping"), self._timeout_s)
