"""The bodies of resumable uploads: the contract's fields, and a few more that clients may ignore."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from mixpeek_ray.api.schemas import Body
from mixpeek_ray.core import limits
from mixpeek_ray.core.records import ModelFormat
from mixpeek_ray.core.uploads import UploadStatus, ValidationStatus

_SHA256 = r"^[0-9a-f]{64}$"


class AnnouncedResources(Body):
    """What one worker of the model will need; ``memory`` in bytes."""

    num_cpus: float = limits.DEFAULT_CPUS
    num_gpus: float = 0
    memory: int = limits.DEFAULT_MEMORY_BYTES


class CreateModelUploadRequest(Body):
    """What is going to be uploaded. Names, versions, formats and resources are checked as an upload's fields are."""

    name: str
    version: str = Field(description="MAJOR.MINOR.PATCH")
    model_format: str = Field(description=f"One of {', '.join(ModelFormat)}.")
    framework: str | None = None
    task_type: str | None = None
    description: str | None = Field(default=None, max_length=500, description="Taken and not kept.")
    file_size_bytes: int | None = Field(default=None, gt=0, le=limits.MAX_ARCHIVE_BYTES)
    sha256: str | None = Field(default=None, pattern=_SHA256, description="Of the whole archive, lower-case hex.")
    presigned_url_expiration: int = Field(
        default=3600, ge=60, le=86_400, description="Seconds that `presigned_url` is good for."
    )
    resource_requirements: AnnouncedResources = Field(default_factory=AnnouncedResources)


class ModelPresignedURLResponse(Body):
    """An open upload: where its bytes go."""

    upload_id: str
    presigned_url: str = Field(description="Takes a PUT of the whole archive (as part 1) without a key, for a while.")
    s3_key: str = Field(description="Where the archive lies until it is confirmed.")
    expires_at: datetime = Field(description="When `presigned_url` ends.")
    organization_id: str
    namespace_id: str
    name: str
    version: str
    model_format: ModelFormat
    model_id: str = Field(description="What the confirmed upload will be.")
    parts_url: str = Field(description="PUT `{parts_url}/1`, `{parts_url}/2`, … with a key.")
    part_size_bytes: int = Field(description="A good size of parts; one part may have `max_part_size_bytes`.")
    max_part_size_bytes: int
    max_parts: int
    upload_expires_at: datetime = Field(description="When the upload is removed unless it was confirmed.")


class PartDocument(Body):
    """A part that arrived."""

    number: int
    size_bytes: int
    sha256: str


class PartResponse(Body):
    """A part is durable."""

    success: bool = True
    upload_id: str
    part: PartDocument


class UploadDocument(Body):
    """A resumable upload; a client that lost its place sends the numbers that are not among ``parts``."""

    upload_id: str
    namespace_id: str
    model_id: str
    name: str
    version: str
    model_format: ModelFormat
    status: UploadStatus
    file_size_bytes: int | None
    sha256: str | None
    received_bytes: int
    parts: list[PartDocument]
    created_at: datetime
    expires_at: datetime


class UploadResponse(Body):
    """One upload."""

    success: bool = True
    upload: UploadDocument


class UploadListResponse(Body):
    """The uploads that were not confirmed, newest first."""

    success: bool = True
    uploads: list[UploadDocument]
    total: int


class UploadAbortResponse(Body):
    """An upload is gone."""

    success: Literal[True] = True
    upload_id: str
    message: str


class ConfirmModelUploadRequest(Body):
    """What the client knows of the whole archive; whatever is given must be so."""

    file_size_bytes: int | None = None
    etag: str | None = Field(default=None, max_length=256, description="The archive's SHA-256, hex, quoted or not.")


class ConfirmModelUploadResponse(Body):
    """How the upload ended; ``validation_status`` is pending when the first deploy will check the archive."""

    success: bool
    upload_id: str
    validation_status: ValidationStatus
    validation_errors: list[str] | None = None
    error_code: str | None = Field(default=None, description="Why the archive was refused: a code as errors carry.")
    model_id: str | None = None
    s3_archive_url: str | None = None
    message: str | None = None
