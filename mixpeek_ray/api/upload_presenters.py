"""From the records of resumable uploads to the bodies on the wire."""

from __future__ import annotations

from datetime import datetime

from mixpeek_ray.api.presenters import archive_url
from mixpeek_ray.api.upload_schemas import (
    ConfirmModelUploadResponse,
    ModelPresignedURLResponse,
    PartDocument,
    PartResponse,
    UploadDocument,
)
from mixpeek_ray.core import limits
from mixpeek_ray.core.uploads import UploadPart, UploadProgress, UploadSession, ValidationStatus, total_bytes


def present_opened_upload(
    session: UploadSession, *, presigned_url: str, expires_at: datetime, parts_url: str, max_part_bytes: int
) -> ModelPresignedURLResponse:
    """Return the answer to a new upload."""
    form = session.announcement.form
    return ModelPresignedURLResponse(
        upload_id=session.upload_id,
        presigned_url=presigned_url,
        s3_key=f"{session.namespace_id}/{session.upload_id}",
        expires_at=expires_at,
        organization_id=session.organization_id,
        namespace_id=session.namespace_id,
        name=form.name,
        version=form.version,
        model_format=form.model_format,
        model_id=session.model_id,
        parts_url=parts_url,
        part_size_bytes=min(limits.UPLOAD_PART_BYTES, max_part_bytes),
        max_part_size_bytes=max_part_bytes,
        max_parts=limits.MAX_UPLOAD_PARTS,
        upload_expires_at=session.expires_at,
    )


def present_progress(progress: UploadProgress) -> UploadDocument:
    """Return an upload with what has arrived of it."""
    session = progress.session
    form = session.announcement.form
    return UploadDocument(
        upload_id=session.upload_id,
        namespace_id=session.namespace_id,
        model_id=session.model_id,
        name=form.name,
        version=form.version,
        model_format=form.model_format,
        status=progress.status,
        file_size_bytes=session.announcement.size_bytes,
        sha256=session.announcement.sha256,
        received_bytes=total_bytes(progress.parts),
        parts=[_part(part) for part in progress.parts],
        created_at=session.created_at,
        expires_at=session.expires_at,
    )


def present_part(upload_id: str, part: UploadPart) -> PartResponse:
    """Return the answer to a part."""
    return PartResponse(upload_id=upload_id, part=_part(part))


def present_outcome(session: UploadSession) -> ConfirmModelUploadResponse:
    """Return how a confirmed upload ended. Raises ``ValueError`` for one that did not."""
    outcome = session.outcome
    if outcome is None:
        raise ValueError("the upload has no outcome yet")
    refused = outcome.validation is ValidationStatus.FAILED
    return ConfirmModelUploadResponse(
        success=not refused,
        upload_id=session.upload_id,
        validation_status=outcome.validation,
        validation_errors=list(outcome.errors) if refused else None,
        error_code=outcome.error_code,
        model_id=None if refused else session.model_id,
        s3_archive_url=None if refused else archive_url(session.namespace_id, session.model_id, outcome.archive_sha256),
        message=_MESSAGES[outcome.validation],
    )


_MESSAGES = {
    ValidationStatus.PASSED: "The model is uploaded and its archive was checked: deploy it to use it.",
    ValidationStatus.PENDING: "The model is uploaded; its first deploy checks the archive.",
    ValidationStatus.FAILED: "The archive was refused and removed: create another upload for one that is right.",
}


def _part(part: UploadPart) -> PartDocument:
    return PartDocument(number=part.number, size_bytes=part.size_bytes, sha256=part.sha256)
