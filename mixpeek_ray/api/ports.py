"""What the HTTP application needs from the rest of the platform, without knowing how it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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


class Platform(Protocol):
    """The use cases behind the routes.

    Every method raises subclasses of ``MixpeekError`` only: ``RegistryUnavailableError`` when the registry does not
    answer within the configured time, ``NamespaceNotFoundError`` when the namespace is not the principal's.
    """

    async def authenticate(self, api_key: str) -> Principal:
        """Return who the key speaks for. Raises ``InvalidApiKeyError``."""

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
        """Release a model's weights."""

    async def delete(self, principal: Principal, namespace_id: str, model_id: str) -> None:
        """Remove a model version for good."""

    async def list_namespaces(self, principal: Principal) -> Sequence[Namespace]:
        """Return the organisation's namespaces, by id."""

    async def create_namespace(self, principal: Principal, name: str) -> Namespace:
        """Make a namespace called ``name`` with a new id."""

    async def health(self) -> PlatformHealth:
        """Return what works, within 5 s whatever is broken."""


__all__ = ["DeployResult", "Platform", "PlatformHealth", "UploadResult"]
