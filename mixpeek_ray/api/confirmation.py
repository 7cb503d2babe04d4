"""Confirming a resumable upload: from its parts, by the way of every upload, to a model version."""

from __future__ import annotations

from mixpeek_ray.api.ports import Platform
from mixpeek_ray.core.errors import ArchiveRefusedError
from mixpeek_ray.core.records import Principal
from mixpeek_ray.core.uploads import UploadOutcome, UploadRef, UploadSession, ValidationStatus


async def confirm_upload(
    platform: Platform, principal: Principal, ref: UploadRef, *, size_bytes: int | None, sha256: str | None
) -> UploadSession:
    """Return the upload with its outcome; confirming it again returns the same.

    An archive that is refused is an outcome, and its bytes are gone. Whatever else fails is raised and leaves the
    upload as it was, to be confirmed again: ``UploadNotFoundError``, ``UploadIncompleteError``,
    ``DigestMismatchError``, ``QuotaExceededError``, ``VersionExistsError``.
    """
    progress, archive = await platform.resumable.assemble(ref, size_bytes, sha256)
    session = progress.session
    if archive is None:
        return session
    try:
        result = await platform.commit_upload(principal, session.namespace_id, session.announcement.form, archive)
    except ArchiveRefusedError as error:
        outcome = UploadOutcome(
            validation=ValidationStatus.FAILED,
            archive_sha256=archive.sha256,
            error_code=error.code,
            errors=(error.message,),
        )
    else:
        checked = result.model.manifest.contents is not None
        outcome = UploadOutcome(
            validation=ValidationStatus.PASSED if checked else ValidationStatus.PENDING, archive_sha256=archive.sha256
        )
    return (await platform.resumable.finish(ref, outcome)).session
