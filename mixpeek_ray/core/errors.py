"""Every error the platform answers with, and the one place that maps each to HTTP.

``MixpeekError`` is the root. A subclass fixes ``code`` (stable, machine-readable), ``status`` (HTTP) and
``error_type`` (the name that published clients switch on)::

    MixpeekError                        500 internal_error
    ├── InvalidCatalogError             500 invalid_catalog
    ├── AuthenticationError             401 unauthenticated
    │   └── InvalidApiKeyError          401 invalid_api_key
    ├── PermissionDeniedError           403 forbidden
    │   └── TierRequiredError           403 tier_required
    ├── NotFoundError (LookupError)     404 not_found
    │   ├── NamespaceNotFoundError      404 namespace_not_found
    │   ├── ModelNotFoundError          404 model_not_found
    │   ├── AliasNotFoundError          404 alias_not_found
    │   ├── UploadNotFoundError         404 upload_not_found
    │   └── KeyNotFoundError            404 key_not_found
    ├── BadRequestError (ValueError)    400 bad_request
    │   ├── InvalidMultipartError       400 invalid_multipart
    │   ├── DigestMismatchError         400 digest_mismatch
    │   ├── UploadIncompleteError       400 upload_incomplete
    │   ├── MethodNotAllowedError       405 method_not_allowed
    │   ├── RequestTimeoutError         408 request_timeout
    │   ├── BodyTooLargeError           413 body_too_large
    │   └── ArchiveTooLargeError        413 archive_too_large
    ├── ConflictError                   409 conflict
    │   ├── QuotaExceededError          409 quota_exceeded
    │   ├── VersionExistsError          409 version_exists
    │   ├── ModelBusyError              409 model_busy
    │   ├── ModelNotDeployedError       409 model_not_deployed
    │   │   └── ModelQuarantinedError       409 model_quarantined
    │   ├── NotServableError            409 not_servable
    │   ├── ModelInUseError             409 model_in_use
    │   ├── RevisionMismatchError       409 revision_mismatch
    │   ├── NoPreviousTargetsError      409 no_previous_targets
    │   └── UploadClosedError           409 upload_closed
    ├── ValidationError (ValueError)    422 validation_error
    │   ├── InvalidNameError            422 invalid_name
    │   ├── InvalidVersionError         422 invalid_version
    │   ├── InvalidResourcesError       422 invalid_resources
    │   ├── UnsupportedFormatError      422 unsupported_format
    │   ├── InputTooLongError           422 input_too_long
    │   └── ArchiveRefusedError         422 invalid_archive
    │       ├── EmptyArchiveError           422 empty_archive
    │       ├── NotTarGzError               422 not_tar_gz
    │       ├── CorruptArchiveError         422 corrupt_archive
    │       ├── DecompressionLimitError     422 decompression_limit
    │       ├── InvalidArchiveHeaderError   422 invalid_archive_header
    │       ├── UnsafePathError             422 unsafe_path
    │       ├── UnsafeEntryError            422 unsafe_entry
    │       ├── DuplicateEntryError         422 duplicate_entry
    │       ├── TooManyEntriesError         422 too_many_entries
    │       ├── FormatMismatchError         422 format_mismatch
    │       ├── UnsafePickleError           422 unsafe_pickle
    │       ├── RemoteCodeNotAllowedError   422 remote_code_not_allowed
    │       ├── UnsafeExternalDataError     422 unsafe_external_data
    │       └── InvalidWeightsError         422 invalid_weights
    ├── OverloadedError                 429 overloaded
    ├── CorruptStoreError               502 corrupt_store
    ├── UnavailableError                503 service_unavailable
    │   ├── RegistryUnavailableError    503 registry_unavailable
    │   ├── StorageUnavailableError     503 storage_unavailable
    │   └── WeightsUnavailableError     503 weights_unavailable
    └── InsufficientCapacityError       507 insufficient_capacity
        └── DiskFullError               507 disk_full

Errors cross Ray actor calls, and pickle rebuilds an exception by calling its class with ``args``: so a constructor
takes a message first and everything else by optional keyword, and ``__reduce__`` carries the keywords.
"""

from __future__ import annotations

from typing import Any, ClassVar

# A client that honours Retry-After should come back once a restarted actor (about 1 s) is ready again.
RETRY_AFTER_S = 2


class MixpeekError(Exception):
    """An answerable failure: stable ``code``, HTTP ``status``, a message that says what to do next."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "InternalServerError"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.details)

    def __str__(self) -> str:
        return self.message


def _rebuild(cls: type[MixpeekError], message: str, details: dict[str, Any]) -> MixpeekError:
    return cls(message, **details)


class InvalidCatalogError(MixpeekError):
    """The file that describes the built-in models contradicts itself, or a model its description."""

    code = "invalid_catalog"


class AuthenticationError(MixpeekError):
    """No usable credentials came with the request."""

    code, status, error_type = "unauthenticated", 401, "UnauthorizedError"


class InvalidApiKeyError(AuthenticationError):
    """The key is malformed, unknown or revoked."""

    code = "invalid_api_key"


class PermissionDeniedError(MixpeekError):
    """The key is valid but its role does not allow this."""

    code, status, error_type = "forbidden", 403, "ForbiddenError"


class TierRequiredError(PermissionDeniedError):
    """The organisation's tier does not include the feature."""

    code = "tier_required"


class NotFoundError(MixpeekError, LookupError):
    """Nothing by that name that the caller may see."""

    code, status, error_type = "not_found", 404, "NotFoundError"


class NamespaceNotFoundError(NotFoundError):
    """No such namespace in the caller's organisation (someone else's looks the same)."""

    code = "namespace_not_found"


class ModelNotFoundError(NotFoundError):
    """No such model in the namespace."""

    code = "model_not_found"


class AliasNotFoundError(NotFoundError):
    """No such alias under the model's name."""

    code = "alias_not_found"


class UploadNotFoundError(NotFoundError):
    """No such resumable upload: unknown, aborted or expired (someone else's looks the same)."""

    code = "upload_not_found"


class KeyNotFoundError(NotFoundError):
    """No API key by that id."""

    code = "key_not_found"


class BadRequestError(MixpeekError, ValueError):
    """The request itself cannot be understood."""

    code, status, error_type = "bad_request", 400, "BadRequestError"


class InvalidMultipartError(BadRequestError):
    """The body is not the multipart form that an upload needs."""

    code = "invalid_multipart"


class DigestMismatchError(BadRequestError):
    """The bytes that arrived do not hash to the digest that was sent with them."""

    code = "digest_mismatch"


class UploadIncompleteError(BadRequestError):
    """The parts of an upload are not the whole archive that was announced."""

    code = "upload_incomplete"


class MethodNotAllowedError(BadRequestError):
    """The path exists, but not with this method."""

    code, status = "method_not_allowed", 405


class RequestTimeoutError(BadRequestError):
    """The client stopped sending."""

    code, status = "request_timeout", 408


class BodyTooLargeError(BadRequestError):
    """A body that is no upload passes the limit for such bodies."""

    code, status = "body_too_large", 413


class ArchiveTooLargeError(BadRequestError):
    """The body passes the archive limit."""

    code, status = "archive_too_large", 413


class ConflictError(MixpeekError):
    """The request contradicts the current state."""

    code, status, error_type = "conflict", 409, "BadRequestError"


class QuotaExceededError(ConflictError):
    """The namespace already holds as many models as it may."""

    code, error_type = "quota_exceeded", "QuotaExceededError"


class VersionExistsError(ConflictError):
    """This version is taken by other bytes."""

    code, error_type = "version_exists", "AlreadyExistsError"


class ModelBusyError(ConflictError):
    """Another operation on the model is under way."""

    code = "model_busy"


class ModelNotDeployedError(ConflictError):
    """The model exists but is not deployed."""

    code = "model_not_deployed"


class ModelQuarantinedError(ModelNotDeployedError):
    """The model is out of service: its native code crashed what computed it, more than once."""

    code = "model_quarantined"


class NotServableError(ConflictError):
    """The archive alone is not enough to compute the model with."""

    code = "not_servable"


class ModelInUseError(ConflictError):
    """An alias points to the model."""

    code = "model_in_use"


class RevisionMismatchError(ConflictError):
    """Somebody else changed the alias in the meantime."""

    code = "revision_mismatch"


class NoPreviousTargetsError(ConflictError):
    """The alias has no earlier targets, or a version among them was deleted since."""

    code = "no_previous_targets"


class UploadClosedError(ConflictError):
    """A resumable upload that is being confirmed, or was, takes no more parts."""

    code = "upload_closed"


class ValidationError(MixpeekError, ValueError):
    """A field has a value that is not allowed."""

    code, status, error_type = "validation_error", 422, "ValidationError"


class InvalidNameError(ValidationError):
    """A model's, a namespace's or an alias' name that is not allowed."""

    code = "invalid_name"


class InvalidVersionError(ValidationError):
    """A version that is not MAJOR.MINOR.PATCH."""

    code = "invalid_version"


class InvalidResourcesError(ValidationError):
    """A resource request out of range."""

    code = "invalid_resources"


class UnsupportedFormatError(ValidationError):
    """A model format that this platform does not read."""

    code = "unsupported_format"


class InputTooLongError(ValidationError):
    """An input has more tokens than the model reads."""

    code = "input_too_long"


class ArchiveRefusedError(ValidationError):
    """The archive was received but may not be used."""

    code = "invalid_archive"


class EmptyArchiveError(ArchiveRefusedError):
    """The file part holds no bytes."""

    code = "empty_archive"


class NotTarGzError(ArchiveRefusedError):
    """The file is no gzip-compressed tar."""

    code = "not_tar_gz"


class CorruptArchiveError(ArchiveRefusedError):
    """Truncated, wrong checksum, or more bytes after the end."""

    code = "corrupt_archive"


class DecompressionLimitError(ArchiveRefusedError):
    """The archive unpacks to more than is allowed."""

    code = "decompression_limit"


class InvalidArchiveHeaderError(ArchiveRefusedError):
    """A tar header contradicts itself."""

    code = "invalid_archive_header"


class UnsafePathError(ArchiveRefusedError):
    """A member's path leads, or could lead, outside the archive."""

    code = "unsafe_path"


class UnsafeEntryError(ArchiveRefusedError):
    """A member that is no regular file or directory."""

    code = "unsafe_entry"


class DuplicateEntryError(ArchiveRefusedError):
    """Two members with one name."""

    code = "duplicate_entry"


class TooManyEntriesError(ArchiveRefusedError):
    """More members than are allowed."""

    code = "too_many_entries"


class FormatMismatchError(ArchiveRefusedError):
    """The archive does not hold what its declared format needs."""

    code = "format_mismatch"


class UnsafePickleError(ArchiveRefusedError):
    """A pickle that would run code."""

    code = "unsafe_pickle"


class RemoteCodeNotAllowedError(ArchiveRefusedError):
    """A model directory with code of its own, or that asks for code from elsewhere."""

    code = "remote_code_not_allowed"


class UnsafeExternalDataError(ArchiveRefusedError):
    """A model that keeps tensors in a file outside the archive, or beyond a file's end."""

    code = "unsafe_external_data"


class InvalidWeightsError(ArchiveRefusedError):
    """A weight file that contradicts itself."""

    code = "invalid_weights"


class OverloadedError(MixpeekError):
    """A model has as much to do as it can finish in time."""

    code, status, error_type = "overloaded", 429, "TooManyRequestsError"


class CorruptStoreError(MixpeekError):
    """The store returned bytes that do not match their recorded hash."""

    code, status, error_type = "corrupt_store", 502, "InternalServerError"


class UnavailableError(MixpeekError):
    """Something the request needs is down; retrying is safe."""

    code, status, error_type = "service_unavailable", 503, "InferenceServiceUnavailableError"


class RegistryUnavailableError(UnavailableError):
    """The model registry did not answer in time."""

    code = "registry_unavailable"


class StorageUnavailableError(UnavailableError):
    """The object store did not answer."""

    code = "storage_unavailable"


class WeightsUnavailableError(UnavailableError):
    """A built-in model whose weights this platform has not been given."""

    code = "weights_unavailable"


class InsufficientCapacityError(MixpeekError):
    """No node could ever hold what was asked for."""

    code, status, error_type = "insufficient_capacity", 507, "InferenceServiceUnavailableError"


class DiskFullError(InsufficientCapacityError):
    """The disk filled up while writing."""

    code = "disk_full"
