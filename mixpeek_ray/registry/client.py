"""The platform's use cases, carried out through the registry actor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self

import ray

from mixpeek_ray.catalog.availability import BuiltinModel
from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.core.records import (
    ArchiveContents,
    DeploymentStatus,
    DeployResult,
    ModelState,
    Namespace,
    PlatformHealth,
    Principal,
    UploadedArchive,
    UploadForm,
    UploadResult,
)
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.aliases_client import AliasesClient
from mixpeek_ray.registry.analytics import AnalyticsClient, ensure_analytics
from mixpeek_ray.registry.bootstrap import ensure_inspector, ensure_registry
from mixpeek_ray.registry.calls import call, call_while_alive
from mixpeek_ray.registry.key_checker import KeyChecker
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.registry.uploads_client import UploadsClient

# Health must answer within 5 s whatever is broken.
_HEALTH_TIMEOUT_S = 2.0
# Discovery needs no key: however many ask, the registry is asked this often.
_BUILTIN_TRUST_S = 1.0
# One wait of a deploy call; short, so that a registry that stops meanwhile is noticed.
_DEPLOY_WAIT_S = 2.0
# A check takes seconds, and others may be ahead of it in the inspector's queue.
_INSPECT_TIMEOUT_S = 30.0


class RegistryClient:
    """Implements ``api.ports.Platform`` over the actors; one for each ingress replica, used from its event loop."""

    def __init__(
        self,
        settings: Settings,
        registry: Any,
        inspector: Any,
        keys: KeyChecker,
        *,
        analytics: AnalyticsClient,
        ingress: str,
    ) -> None:
        self._settings = settings
        self._ingress = ingress
        self._registry = registry
        self._inspector = inspector
        self._keys = keys
        self.resumable = UploadsClient(registry, timeout_s=settings.registry_timeout_s)
        self.aliases = AliasesClient(registry, timeout_s=settings.registry_timeout_s)
        self.analytics = analytics
        self._builtin: Sequence[BuiltinModel] | None = None
        self._builtin_read_at = 0.0
        self._builtin_lock = asyncio.Lock()

    @classmethod
    async def connect(cls, settings: Settings, *, ingress: str) -> Self:
        """Return a client whose keys are read; creates the actors on a new cluster."""
        registry = await asyncio.to_thread(ensure_registry, settings)
        inspector = await asyncio.to_thread(ensure_inspector, settings)
        analytics = AnalyticsClient(await asyncio.to_thread(ensure_analytics, settings))
        keys = await KeyChecker.connect(registry, timeout_s=settings.registry_timeout_s)
        return cls(settings, registry, inspector, keys, analytics=analytics, ingress=ingress)

    # Accounts

    async def authenticate(self, api_key: str) -> Principal:
        """Return who the key speaks for. Raises ``InvalidApiKeyError``."""
        return await self._keys.authenticate(api_key)

    async def sign_url(self, principal: Principal, path: str, expires_at: datetime) -> str:
        """Return the query that lets its bearer PUT to ``path`` as ``principal``."""
        return await self._keys.sign_url(principal, path, expires_at)

    async def authenticate_url(self, path: str, query: str) -> Principal:
        """Return who signed this URL. Raises ``InvalidApiKeyError``."""
        return await self._keys.authenticate_url(path, query)

    async def list_namespaces(self, principal: Principal) -> Sequence[Namespace]:
        """Return the organisation's namespaces, by id."""
        namespaces: Sequence[Namespace] = await self._call("list_namespaces", principal.organization.organization_id)
        return namespaces

    async def create_namespace(self, principal: Principal, name: str) -> Namespace:
        """Make a namespace called ``name`` with a new id."""
        created: Namespace = await self._call("create_namespace", principal.organization.organization_id, name)
        return created

    # Models

    async def admit_upload(self, principal: Principal, namespace_id: str) -> None:
        """Return if an upload may begin."""
        await self._call("admit_upload", principal.organization.organization_id, namespace_id)

    async def commit_upload(
        self, principal: Principal, namespace_id: str, form: UploadForm, archive: UploadedArchive
    ) -> UploadResult:
        """Check the archive, then make it a model version."""
        contents: ArchiveContents | None = None
        if archive.size_bytes <= self._settings.check_on_upload_max_bytes:
            inspection = self._inspector.inspect.remote(archive.temporary_key, form.model_format)
            contents = await call(inspection, _INSPECT_TIMEOUT_S)
        organization_id = principal.organization.organization_id
        commit = self._registry.commit_upload.remote(organization_id, namespace_id, form, archive, contents)
        # Moving 10 GB within S3 takes minutes; a registry that is gone shows in seconds.
        model, created = await call_while_alive(commit, lambda: self._call("ping"), self._settings.registry_timeout_s)
        return UploadResult(model=model, created=created)

    async def list_models(self, principal: Principal, namespace_id: str) -> Sequence[ModelState]:
        """Return the namespace's models, newest first."""
        organization_id = principal.organization.organization_id
        models: Sequence[ModelState] = await self._call("list_models", organization_id, namespace_id)
        return models

    async def get_model(self, principal: Principal, namespace_id: str, model_id: str) -> ModelState:
        """Return one model."""
        key = ModelKey(namespace_id=namespace_id, model_id=model_id)
        model: ModelState = await self._call("get_model", principal.organization.organization_id, key)
        return model

    async def deploy(self, principal: Principal, namespace_id: str, model_id: str, *, wait: bool) -> DeployResult:
        """Bring a model's weights into the cluster."""
        key = ModelKey(namespace_id=namespace_id, model_id=model_id)
        model, cached = await self._call("deploy", principal.organization.organization_id, key)
        deadline = time.monotonic() + self._settings.deploy_timeout_s
        while wait and model.status is DeploymentStatus.PENDING and time.monotonic() < deadline:
            waited = self._registry.wait_deployed.remote(key, _DEPLOY_WAIT_S)
            model = await call(waited, _DEPLOY_WAIT_S + self._settings.registry_timeout_s)
        return DeployResult(model=model, cached=cached)

    async def undeploy(self, principal: Principal, namespace_id: str, model_id: str) -> ModelState:
        """Release a model's weights."""
        key = ModelKey(namespace_id=namespace_id, model_id=model_id)
        model: ModelState = await self._call("undeploy", principal.organization.organization_id, key)
        return model

    async def delete(self, principal: Principal, namespace_id: str, model_id: str) -> None:
        """Remove a model version for good."""
        key = ModelKey(namespace_id=namespace_id, model_id=model_id)
        await self._call("delete", principal.organization.organization_id, key)

    # Built-in models

    async def builtin_models(self) -> Sequence[BuiltinModel]:
        """Return every built-in model with what was known of its weights a moment ago, in the catalog's order."""
        async with self._builtin_lock:
            if self._builtin is None or time.monotonic() - self._builtin_read_at > _BUILTIN_TRUST_S:
                self._builtin = await self._call("builtin_models")
                self._builtin_read_at = time.monotonic()
            return self._builtin

    # Health

    async def health(self) -> PlatformHealth:
        """Return what works now."""
        registry, storage, nodes = await asyncio.gather(
            _succeeds(self._registry.ping.remote()),
            _succeeds(self._registry.store_answers.remote()),
            _live_nodes(),
        )
        return PlatformHealth(
            registry=registry is not _FAILED,
            object_storage=storage is True,
            task_queue=bool(nodes),
            object_store_memory=any(node["Resources"].get("object_store_memory") for node in nodes),
            ingress=self._ingress,
        )

    async def _call(self, method: str, *arguments: Any) -> Any:
        return await call(getattr(self._registry, method).remote(*arguments), self._settings.registry_timeout_s)


_FAILED = object()


async def _succeeds(reference: Any) -> Any:
    try:
        return await call(reference, _HEALTH_TIMEOUT_S)
    except MixpeekError:
        return _FAILED


async def _live_nodes() -> list[dict[str, Any]]:
    try:
        nodes = await asyncio.wait_for(asyncio.to_thread(ray.nodes), _HEALTH_TIMEOUT_S)
    except (TimeoutError, ray.exceptions.RayError):
        return []
    return [node for node in nodes if node["Alive"]]
