"""The records of a resumable upload: an archive that comes in parts, over as many connections as it takes."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mixpeek_ray.core.ids import model_id
from mixpeek_ray.core.records import UploadForm


class UploadStatus(enum.StrEnum):
    """Where a resumable upload stands; only an open one takes parts."""

    OPEN = "open"
    CONFIRMING = "confirming"
    COMPLETED = "completed"
    FAILED = "failed"


class ValidationStatus(enum.StrEnum):
    """What checking an archive found (the wire contract's three words); pending: its first deploy checks it."""

    PENDING = "pending"
    PASSED = "passed"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class UploadRef:
    """Names an upload as a caller may name it: someone else's, or one of another namespace, is not found."""

    upload_id: str
    organization_id: str
    # None: whichever of the organisation's namespaces it is in.
    namespace_id: str | None


@dataclass(frozen=True, kw_only=True)
class UploadAnnouncement:
    """What a client says it is going to send; None: it does not say."""

    form: UploadForm
    size_bytes: int | None = None
    # Lower-case hex.
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class UploadPart:
    """A part that arrived and is durable. ``number`` counts from 1; ``revision`` rises when it is sent again."""

    number: int
    revision: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SealedUpload:
    """The parts that make the archive, in order, and the hash of the whole."""

    parts: tuple[UploadPart, ...]
    sha256: str

    @property
    def size_bytes(self) -> int:
        """The archive's size."""
        return total_bytes(self.parts)


@dataclass(frozen=True, kw_only=True)
class UploadOutcome:
    """How a confirmed upload ended; ``errors`` says why the archive was refused."""

    validation: ValidationStatus
    archive_sha256: str
    error_code: str | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UploadSession:
    """A resumable upload, as the store keeps it."""

    upload_id: str
    organization_id: str
    namespace_id: str
    announcement: UploadAnnouncement
    created_at: datetime
    expires_at: datetime
    # Set by the first confirmation whose parts are whole: from then on they are taken apart.
    sealed: SealedUpload | None = None
    # Set by the confirmation that succeeded or was refused; kept so that a repeated one hears the same.
    outcome: UploadOutcome | None = None

    @property
    def model_id(self) -> str:
        """The id of the model version that it makes."""
        return model_id(self.announcement.form.name, self.announcement.form.version)


@dataclass(frozen=True, kw_only=True)
class UploadProgress:
    """An upload with what has arrived of it; ``parts`` by number."""

    session: UploadSession
    status: UploadStatus
    parts: tuple[UploadPart, ...]


def total_bytes(parts: Sequence[UploadPart]) -> int:
    """Return the bytes of all parts together."""
    return sum(part.size_bytes for part in parts)
