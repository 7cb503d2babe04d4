"""Which resumable uploads there are and what each may still do. Pure: no Ray, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import ArchiveTooLargeError, QuotaExceededError, UploadClosedError, UploadNotFoundError
from mixpeek_ray.core.uploads import (
    UploadPart,
    UploadProgress,
    UploadRef,
    UploadSession,
    UploadStatus,
    ValidationStatus,
    total_bytes,
)
from mixpeek_ray.registry.state import now


@dataclass(kw_only=True)
class OpenedUpload:
    """An upload as it stands now: its record, its parts by number, and whether a confirmation is reading them."""

    session: UploadSession
    parts: dict[int, UploadPart] = field(default_factory=dict)
    confirming: bool = False

    @property
    def status(self) -> UploadStatus:
        """Where it stands; only an open one takes parts."""
        outcome = self.session.outcome
        if outcome is not None:
            return UploadStatus.FAILED if outcome.validation is ValidationStatus.FAILED else UploadStatus.COMPLETED
        return UploadStatus.CONFIRMING if self.confirming or self.session.sealed else UploadStatus.OPEN

    def progress(self) -> UploadProgress:
        """Return what a caller may know of it."""
        sealed = self.session.sealed
        parts = sealed.parts if sealed else tuple(part for _, part in sorted(self.parts.items()))
        return UploadProgress(session=self.session, status=self.status, parts=parts)

    def check_open(self) -> None:
        """Return if it takes parts. Raises ``UploadClosedError``."""
        if self.status is not UploadStatus.OPEN:
            raise UploadClosedError(
                f"The upload is {self.status} and takes no more parts: create another one for other bytes.",
                upload_status=self.status.value,
            )

    def check_room(self, number: int, size_bytes: int = 1) -> int:
        """Return how many bytes part ``number`` may have. Raises ``ArchiveTooLargeError`` below ``size_bytes``."""
        others = [part for part in self.parts.values() if part.number != number]
        whole_bytes = self.session.announcement.size_bytes or limits.MAX_ARCHIVE_BYTES
        room_bytes = whole_bytes - total_bytes(others)
        if size_bytes > room_bytes:
            raise ArchiveTooLargeError(
                f"The parts would hold more than the archive's {whole_bytes} bytes: the other parts leave "
                f"{max(room_bytes, 0)} bytes to this one.",
                limit_bytes=max(room_bytes, 0),
            )
        return room_bytes


class UploadBook:
    """Every resumable upload, by id."""

    def __init__(self) -> None:
        self._uploads: dict[str, OpenedUpload] = {}

    def add(self, upload: OpenedUpload) -> None:
        """Take an upload in."""
        self._uploads[upload.session.upload_id] = upload

    def forget(self, upload_id: str) -> None:
        """Drop an upload; one that is not there is no error."""
        self._uploads.pop(upload_id, None)

    def knows(self, upload_id: str) -> bool:
        """Tell whether there is an upload with this id, whoever's."""
        return upload_id in self._uploads

    def get(self, ref: UploadRef) -> OpenedUpload:
        """Return an upload. Raises ``UploadNotFoundError`` for one that is unknown, expired or not the caller's."""
        upload = self._uploads.get(ref.upload_id)
        if (
            upload is None
            or upload.session.organization_id != ref.organization_id
            or ref.namespace_id not in (None, upload.session.namespace_id)
            or upload.session.expires_at <= now()
        ):
            raise UploadNotFoundError(
                f"There is no upload {ref.upload_id[:80]!a} here: it was aborted, it expired, or it never was. "
                "Create another one.",
            )
        return upload

    def unconfirmed(self, organization_id: str, namespace_id: str | None) -> tuple[UploadProgress, ...]:
        """Return the uploads without an outcome of a namespace, or of a whole organisation; newest first."""
        found = (
            upload.progress()
            for upload in self._uploads.values()
            if upload.session.organization_id == organization_id
            and namespace_id in (None, upload.session.namespace_id)
            and upload.session.outcome is None
            and upload.session.expires_at > now()
        )
        return tuple(sorted(found, key=lambda progress: progress.session.created_at, reverse=True))

    def check_room(self, organization_id: str, namespace_id: str) -> None:
        """Return if the namespace may open one more upload. Raises ``QuotaExceededError``."""
        if len(self.unconfirmed(organization_id, namespace_id)) >= limits.MAX_OPEN_UPLOADS_PER_NAMESPACE:
            raise QuotaExceededError(
                f"The namespace has {limits.MAX_OPEN_UPLOADS_PER_NAMESPACE} uploads that were not confirmed, as many "
                "as it may: confirm or DELETE one first (GET lists them).",
                limit=limits.MAX_OPEN_UPLOADS_PER_NAMESPACE,
            )

    def expired(self, upload_id: str) -> bool:
        """Tell whether an upload is there whose time is up."""
        upload = self._uploads.get(upload_id)
        return upload is not None and upload.session.expires_at <= now()

    def all_expired(self) -> tuple[str, ...]:
        """Return the ids of the uploads whose time is up."""
        return tuple(upload_id for upload_id in self._uploads if self.expired(upload_id))

    def needs(self, archive_sha256: str) -> bool:
        """Tell whether a confirmation under way has moved, or may move, its archive to this content's address."""
        sealed = (upload.session.sealed for upload in self._uploads.values() if upload.session.outcome is None)
        return any(found is not None and found.sha256 == archive_sha256 for found in sealed)
