"""The ModelRegistry actor: a thin shell around the catalog, the accounts, the store and the weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray

from mixpeek_ray.core.records import DeploymentStatus, ModelKind
from mixpeek_ray.registry.alias_calls import AliasCalls
from mixpeek_ray.registry.handles import LoadTicket
from mixpeek_ray.registry.state import ModelKey

if TYPE_CHECKING:
    from mixpeek_ray.catalog.availability import BuiltinModel
    from mixpeek_ray.catalog.cards import ModelCard
    from mixpeek_ray.core.crashes import ModelCrash
    from mixpeek_ray.core.keys import KeyRingSnapshot
    from mixpeek_ray.core.placement import PoolLimit
    from mixpeek_ray.core.records import (
        ApiKey,
        ArchiveContents,
        ModelState,
        Namespace,
        Role,
        Tier,
        UploadedArchive,
        UploadForm,
    )
    from mixpeek_ray.core.uploads import (
        UploadAnnouncement,
        UploadOutcome,
        UploadPart,
        UploadProgress,
        UploadRef,
        UploadSession,
    )
    from mixpeek_ray.registry.accounts import CreatedKey


@dataclass(frozen=True, kw_only=True)
class RegistryConfig:
    """What the actor is told at birth, and again at every restart."""

    store_url: str
    secret_path: str
    spool_dir: str | None
    # Where the development organisation's key goes; None: make no such organisation.
    dev_key_path: str | None
    # How long a resumable upload may take.
    upload_lifetime_s: float
    # The built-in models, and where this site keeps weights of them.
    cards: tuple[ModelCard, ...]
    models_dir: str | None
    # How long a built-in model's weights stay without a user; those of warm models stay anyway.
    model_idle_s: float
    warm_models: tuple[str, ...]
    # What a deployed model may ask for and still be served by the pool.
    pool_limit: PoolLimit


class ModelRegistry(AliasCalls):
    """Decides everything about models and accounts; the only writer of records, the owner of deployed weights.

    Methods raise subclasses of ``MixpeekError``. ``organization_id`` is whose namespace it must be:
    ``NamespaceNotFoundError`` otherwise.
    """

    async def __init__(self, config: RegistryConfig) -> None:  # type: ignore[misc]  # Ray awaits it
        # Whoever looks the actor up imports this module for its class: what only the actor needs is imported here,
        # so that a loader's first call does not pay for it.
        from mixpeek_ray.registry.parts import RegistryParts

        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        parts = RegistryParts.restore(config, first_start=not restarted)
        self._pool_limit = config.pool_limit
        self._catalog = parts.catalog
        self._deployer = parts.deployer
        self._quarantine = parts.quarantine
        self._versions = parts.versions
        self._aliases = parts.aliases
        self._accounts = parts.accounts
        self._uploads = parts.uploads
        self._builtin = parts.builtin
        self._housekeeper = parts.housekeeper
        self._account_lock = asyncio.Lock()
        self._housekeeping = asyncio.create_task(self._housekeeper.keep())
        self._watching = asyncio.create_task(self._builtin.watch())
        self._guarding = asyncio.create_task(parts.alias_watch.keep())

    # Health

    async def ping(self) -> None:
        """Return: the registry is alive and its loop is free."""

    async def store_answers(self) -> bool:
        """Tell whether the store answers a question now."""
        return await asyncio.to_thread(self._housekeeper.store_answers)

    # Accounts

    async def key_ring(self, known_version: str | None) -> KeyRingSnapshot | None:
        """Return what is needed to check keys; None when ``known_version`` is still the current one."""
        return self._accounts.snapshot(known_version)

    async def create_key(self, organization: str, tier: Tier | None, name: str, role: Role) -> CreatedKey:
        """Create a key for the organisation with this name or id; with a tier, create the organisation if need be."""
        async with self._account_lock:
            return await asyncio.to_thread(self._create_key, organization, tier, name, role)

    def _create_key(self, organization: str, tier: Tier | None, name: str, role: Role) -> CreatedKey:
        owner = self._accounts.organization_named(organization, create_with_tier=tier)
        return self._accounts.create_key(owner.organization_id, name=name, role=role)

    async def list_keys(self) -> tuple[ApiKey, ...]:
        """Return every key's record."""
        return self._accounts.keys()

    async def revoke_key(self, key_id: str) -> ApiKey:
        """End a key's life."""
        async with self._account_lock:
            return await asyncio.to_thread(self._accounts.revoke_key, key_id)

    async def list_namespaces(self, organization_id: str) -> tuple[Namespace, ...]:
        """Return an organisation's namespaces."""
        return self._accounts.namespaces(organization_id)

    async def create_namespace(self, organization_id: str, name: str) -> Namespace:
        """Create a namespace."""
        async with self._account_lock:
            return await asyncio.to_thread(self._accounts.create_namespace, organization_id, name)

    # Models, for the HTTP API

    async def admit_upload(self, organization_id: str, namespace_id: str) -> None:
        """Return if an upload to the namespace may begin, making a development namespace on its first use."""
        if self._accounts.owned_namespace(organization_id, namespace_id) is None:
            async with self._account_lock:
                await asyncio.to_thread(self._accounts.adopt_namespace, organization_id, namespace_id)
        self._catalog.admit(namespace_id)

    async def commit_upload(
        self,
        organization_id: str,
        namespace_id: str,
        form: UploadForm,
        archive: UploadedArchive,
        contents: ArchiveContents | None,
    ) -> tuple[ModelState, bool]:
        """Turn an uploaded archive into a model version; the flag is False when it was there already."""
        self._check_namespace(organization_id, namespace_id)
        return await self._versions.create(namespace_id, form, archive, contents)

    async def list_models(self, organization_id: str, namespace_id: str) -> tuple[ModelState, ...]:
        """Return a namespace's models, newest first."""
        self._check_namespace(organization_id, namespace_id)
        return self._catalog.models(namespace_id)

    async def get_model(self, organization_id: str, key: ModelKey) -> ModelState:
        """Return one model."""
        self._check_namespace(organization_id, key.namespace_id)
        return self._catalog.get(key)

    async def deploy(self, organization_id: str, key: ModelKey) -> tuple[ModelState, bool]:
        """Start to bring a model's weights into the cluster; the flag is True when they are there already."""
        self._check_namespace(organization_id, key.namespace_id)
        return await self._deployer.deploy(key)

    async def wait_deployed(self, key: ModelKey, timeout_s: float) -> ModelState:
        """Return the model once no deploy of it is under way, or as it is after ``timeout_s``."""
        await self._deployer.wait(key, timeout_s)
        return self._catalog.get(key)

    async def undeploy(self, organization_id: str, key: ModelKey) -> ModelState:
        """Let a model's weights go. Raises ``ModelInUseError`` while an alias sends requests to it."""
        self._check_namespace(organization_id, key.namespace_id)
        async with self._aliases.none_serving(key):
            return await self._deployer.undeploy(key)

    async def delete(self, organization_id: str, key: ModelKey) -> None:
        """Remove a model version for good. Raises ``ModelInUseError`` while an alias points to it."""
        self._check_namespace(organization_id, key.namespace_id)
        async with self._aliases.none_naming(key):
            await self._versions.delete(key)

    # Resumable uploads: see registry.uploads for what each raises

    async def create_upload(
        self, upload_id: str, organization_id: str, namespace_id: str, announcement: UploadAnnouncement
    ) -> UploadSession:
        """Open an upload, making a development namespace on its first use."""
        await self.admit_upload(organization_id, namespace_id)
        return await self._uploads.create(upload_id, organization_id, namespace_id, announcement)

    async def list_uploads(self, organization_id: str, namespace_id: str | None) -> tuple[UploadProgress, ...]:
        """Return the uploads that were not confirmed, newest first."""
        if namespace_id is not None:
            self._check_namespace(organization_id, namespace_id)
        return self._uploads.unconfirmed(organization_id, namespace_id)

    async def find_upload(self, ref: UploadRef) -> UploadProgress:
        """Return an upload with what has arrived of it."""
        return self._uploads.find(self._checked(ref))

    async def admit_part(self, ref: UploadRef, number: int) -> int:
        """Return how many bytes a part may have."""
        return self._uploads.admit_part(self._checked(ref), number)

    async def add_part(self, ref: UploadRef, number: int, archive: UploadedArchive) -> UploadPart:
        """Make a blob a part of an upload."""
        return await self._uploads.add_part(self._checked(ref), number, archive)

    async def assemble_upload(
        self, ref: UploadRef, size_bytes: int | None, sha256: str | None
    ) -> tuple[UploadProgress, UploadedArchive | None]:
        """Join an upload's parts to the archive that is to be committed."""
        return await self._uploads.assemble(self._checked(ref), size_bytes, sha256)

    async def finish_upload(self, ref: UploadRef, outcome: UploadOutcome) -> UploadProgress:
        """Record how an upload ended."""
        return await self._uploads.finish(self._checked(ref), outcome)

    async def abort_upload(self, ref: UploadRef) -> None:
        """Forget an upload."""
        await self._uploads.abort(self._checked(ref))

    def _checked(self, ref: UploadRef) -> UploadRef:
        if ref.namespace_id is not None:
            self._check_namespace(ref.organization_id, ref.namespace_id)
        return ref

    # Models, for those who serve and load them

    async def dedicated_models(self) -> tuple[ModelState, ...]:
        """Return every namespace's models that ask for more than the pool has and are deployed, or on their way."""
        return tuple(state for state in self._catalog.wanted() if not self._pool_limit.takes(state.manifest.resources))

    async def resolve(self, key: ModelKey, wait_s: float) -> LoadTicket | None:
        """Return where the weights are; None when they are still on their way after ``wait_s``.

        Raises ``NamespaceNotFoundError``, ``ModelNotFoundError``, ``ModelNotDeployedError``.
        """
        self._accounts.check_namespace_exists(key.namespace_id)
        self._catalog.check_loadable(key)
        await self._deployer.wait(key, wait_s)
        state = self._catalog.check_loadable(key)
        if state.status is not DeploymentStatus.DEPLOYED:
            return None
        refs = self._deployer.refs(key)
        return LoadTicket(
            content_id=state.manifest.archive_sha256,
            kind=state.contents.kind if state.contents else ModelKind.STATE_DICT,
            refs=(refs.weights, refs.companions),
        )

    async def report_progress(self, key: ModelKey, attempt: int, bytes_done: int) -> None:
        """Take note of how far a materialization is."""
        self._deployer.begun(key, attempt)
        self._catalog.progressed(key, attempt, bytes_done)

    async def report_crash(self, key: ModelKey, content: str, crash: ModelCrash) -> None:
        """Take note that a deployed model crashed what computed it; see ``registry.quarantine``."""
        await self._quarantine.report(key, content, crash)

    # Built-in models

    async def builtin_models(self) -> tuple[BuiltinModel, ...]:
        """Return every built-in model with what is known of its weights now."""
        return await self._builtin.models()

    async def resolve_builtin(self, name: str, wait_s: float) -> LoadTicket | None:
        """Return where a built-in model's weights are, loading them if need be; None: on their way after ``wait_s``.

        ``name``: or an alias. Raises ``ModelNotFoundError``, ``WeightsUnavailableError``,
        ``InsufficientCapacityError``.
        """
        return await self._builtin.resolve(name, wait_s)

    async def keep_builtin(self, names: Sequence[str]) -> None:
        """Count these built-in models as in use: their weights stay for another ``model_idle_s``."""
        self._builtin.keep(names)
