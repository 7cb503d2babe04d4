"""What the HTTP application needs from the rest of the platform, without knowing how it is done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from mixpeek_ray.api.analytics_ports import Analytics
from mixpeek_ray.catalog.availability import BuiltinModel
from mixpeek_ray.core.aliases import AliasPlan, AliasRef, AliasRoute, ModelAlias
from mixpeek_ray.core.records import (
    DeployResult,
    ModelState,
    Namespace,
    PlatformHealth,
    Principal,
    UploadedArchive,
    UploadForm,
    UploadResult,
)
from mixpeek_ray.core.uploads import (
    UploadAnnouncement,
    UploadOutcome,
    UploadPart,
    UploadProgress,
    UploadRef,
    UploadSession,
)


class ResumableUploads(Protocol):
    """The steps of an upload that comes in parts. Those that take an ``UploadRef`` raise ``UploadNotFoundError``."""

    async def create(self, principal: Principal, namespace_id: str, announcement: UploadAnnouncement) -> UploadSession:
        """Open an upload. Raises ``NamespaceNotFoundError``, ``QuotaExceededError``, ``VersionExistsError``."""

    async def list(self, principal: Principal, namespace_id: str | None) -> Sequence[UploadProgress]:
        """Return the uploads that were not confirmed, newest first; without a namespace, all the organisation's."""

    async def find(self, ref: UploadRef) -> UploadProgress:
        """Return an upload with what has arrived of it."""

    async def admit_part(self, ref: UploadRef, number: int) -> int:
        """Return how many bytes a part may have. Raises ``UploadClosedError``, ``ArchiveTooLargeError``."""

    async def add_part(self, ref: UploadRef, number: int, archive: UploadedArchive) -> UploadPart:
        """Make a blob a part, in place of an earlier one. Raises as ``admit_part``: then the blob is the caller's."""

    async def assemble(
        self, ref: UploadRef, size_bytes: int | None, sha256: str | None
    ) -> tuple[UploadProgress, UploadedArchive | None]:
        """Join the parts to the archive that is to be committed; None when the upload has its outcome already.

        Raises ``UploadIncompleteError``, ``DigestMismatchError``, ``QuotaExceededError``, ``VersionExistsError``.
        """

    async def finish(self, ref: UploadRef, outcome: UploadOutcome) -> UploadProgress:
        """Record how an upload ended and remove its bytes."""

    async def abort(self, ref: UploadRef) -> None:
        """Forget an upload and remove its bytes. Raises ``UploadClosedError`` while it is being confirmed."""


class ModelAliases(Protocol):
    """What is done with aliases. Those that take an ``AliasRef`` raise ``AliasNotFoundError``, but for ``put``.

    ``expected_revision``: the revision that the caller saw last, 0 for no alias; None: whatever it is.
    ``RevisionMismatchError`` when it is another one.
    """

    async def list(self, principal: Principal, namespace_id: str, name: str | None) -> Sequence[ModelAlias]:
        """Return a namespace's aliases, or those under one model name, by name and alias."""

    async def get(self, principal: Principal, ref: AliasRef) -> ModelAlias:
        """Return one alias with its history."""

    async def put(
        self, principal: Principal, ref: AliasRef, plan: AliasPlan, expected_revision: int | None
    ) -> ModelAlias:
        """Let an alias do as planned, making it if need be.

        Raises ``InvalidNameError``, ``ValidationError``, ``ModelNotDeployedError`` (a version that would be sent
        requests), ``QuotaExceededError``.
        """

    async def roll_back(self, principal: Principal, ref: AliasRef, expected_revision: int | None) -> ModelAlias:
        """Point an alias to what it pointed to before. Raises ``NoPreviousTargetsError``, ``ModelNotDeployedError``."""

    async def delete(self, principal: Principal, ref: AliasRef, expected_revision: int | None) -> None:
        """Remove an alias and its history."""

    async def route(self, principal: Principal, ref: AliasRef) -> AliasRoute:
        """Return where an alias' requests go now, or those of ``latest``: ``ModelNotDeployedError`` without one."""


class Platform(Protocol):
    """The use cases behind the routes.

    Every method raises subclasses of ``MixpeekError`` only: ``RegistryUnavailableError`` when the registry does not
    answer within the configured time, ``NamespaceNotFoundError`` when the namespace is not the principal's.
    """

    @property
    def resumable(self) -> ResumableUploads:
        """Uploads that come in parts."""

    @property
    def aliases(self) -> ModelAliases:
        """Names for weighted versions of a model."""

    @property
    def analytics(self) -> Analytics:
        """What became of requests."""

    async def authenticate(self, api_key: str) -> Principal:
        """Return who the key speaks for. Raises ``InvalidApiKeyError``."""

    async def sign_url(self, principal: Principal, path: str, expires_at: datetime) -> str:
        """Return the query that lets its bearer PUT to ``path`` as ``principal``, until ``expires_at``."""

    async def authenticate_url(self, path: str, query: str) -> Principal:
        """Return who signed this URL. Raises ``InvalidApiKeyError``."""

    async def admit_upload(self, principal: Principal, namespace_id: str) -> None:
        """Return if an upload may begin. Raises ``NamespaceNotFoundError``, ``QuotaExceededError``."""

    async def commit_upload(
        self, principal: Principal, namespace_id: str, form: UploadForm, archive: UploadedArchive
    ) -> UploadResult:
        """Check the archive, then make it a model version; on any error nothing of it is left."""

    async def list_models(self, principal: Principal, namespace_id: str) -> Sequence[ModelState]:
        """Return the namespace's models, newest first."""

    async def get_model(self, principal: Principal, namespace_id: str, model_id: str) -> ModelState:
        """Return one model. Raises ``ModelNotFoundError``."""

    async def deploy(self, principal: Principal, namespace_id: str, model_id: str, *, wait: bool) -> DeployResult:
        """Bring a model's weights into the cluster. Raises what made it fail when ``wait`` is True."""

    async def undeploy(self, principal: Principal, namespace_id: str, model_id: str) -> ModelState:
        """Release a model's weights. Raises ``ModelInUseError`` while an alias sends requests to it."""

    async def delete(self, principal: Principal, namespace_id: str, model_id: str) -> None:
        """Remove a model version for good. Raises ``ModelInUseError`` while an alias points to it."""

    async def list_namespaces(self, principal: Principal) -> Sequence[Namespace]:
        """Return the organisation's namespaces, by id."""

    async def create_namespace(self, principal: Principal, name: str) -> Namespace:
        """Make a namespace called ``name`` with a new id."""

    async def builtin_models(self) -> Sequence[BuiltinModel]:
        """Return the catalog's models, in its order, with what is known of their weights."""

    async def health(self) -> PlatformHealth:
        """Return what works, within 5 s whatever is broken."""


__all__ = ["DeployResult", "ModelAliases", "Platform", "PlatformHealth", "ResumableUploads", "UploadResult"]
