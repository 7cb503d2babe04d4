"""The registry's state machine: what models exist, where each stands, who may see them. Pure: no Ray, no I/O.

A model version moves like this::

    (absent) ──reserve/created──▶ NOT_DEPLOYED ──deploy──▶ PENDING ──deployed──▶ DEPLOYED
                                      ▲  ▲                   │  │                   │
                                      │  └─────undeploy──────┘  └─failed─▶ FAILED   │
                                      └───────────────────undeploy──────────────────┘
    PENDING or DEPLOYED ──quarantined──▶ FAILED
    any state ──begin_delete──▶ DELETING ──deleted──▶ (absent)

Each deploy carries an ``attempt`` number; what a materialization reports counts only while its attempt is current, so a
late result of an undeployed or deleted model changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import (
    MixpeekError,
    ModelBusyError,
    ModelNotDeployedError,
    ModelNotFoundError,
    ModelQuarantinedError,
    QuotaExceededError,
    VersionExistsError,
)
from mixpeek_ray.core.records import ArchiveContents, DeploymentStatus, ModelManifest, ModelState


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class ModelKey:
    """Names one model version: its namespace and its id."""

    namespace_id: str
    model_id: str


@dataclass(frozen=True, kw_only=True)
class _Entry:
    state: ModelState
    attempt: int = 0
    deleting: bool = False


class ModelCatalog:
    """Every model version and its deployment; each method is one transition or one question."""

    def __init__(self) -> None:
        self._entries: dict[ModelKey, _Entry] = {}
        self._reserved: set[ModelKey] = set()

    def restore(self, manifests: Iterable[ModelManifest]) -> None:
        """Take over what the store holds, all of it not deployed yet."""
        for manifest in manifests:
            self.created(manifest)

    def models(self, namespace_id: str) -> tuple[ModelState, ...]:
        """Return a namespace's models, newest first."""
        found = (entry.state for key, entry in self._entries.items() if key.namespace_id == namespace_id)
        return tuple(sorted(found, key=lambda state: state.manifest.created_at, reverse=True))

    def wanted(self) -> Iterator[ModelState]:
        """Yield every model that is deployed or on its way."""
        wanted = (DeploymentStatus.DEPLOYED, DeploymentStatus.PENDING)
        return (state for state in self.all() if state.status in wanted)

    def all(self) -> Iterator[ModelState]:
        """Yield every model of every namespace."""
        for entry in self._entries.values():
            yield entry.state

    def get(self, key: ModelKey) -> ModelState:
        """Return one model. Raises ``ModelNotFoundError``."""
        return self._entry(key).state

    def check_open(self, key: ModelKey) -> ModelState:
        """Return a model that may be changed. Raises ``ModelNotFoundError``, ``ModelBusyError`` during a delete."""
        entry = self._entry(key)
        self._check_not_deleting(entry)
        return entry.state

    def references(self, archive_sha256: str) -> bool:
        """Tell whether any model version is made of this archive."""
        return any(entry.state.manifest.archive_sha256 == archive_sha256 for entry in self._entries.values())

    # Creating

    def admit(self, namespace_id: str) -> None:
        """Return if the namespace has room for one more. Raises ``QuotaExceededError``."""
        used = sum(key.namespace_id == namespace_id for key in (*self._entries, *self._reserved))
        if used >= limits.MAX_MODELS_PER_NAMESPACE:
            raise QuotaExceededError(
                f"The namespace holds {limits.MAX_MODELS_PER_NAMESPACE} models, as many as it may: "
                "delete a version that is no longer used.",
                limit=limits.MAX_MODELS_PER_NAMESPACE,
                used=used,
            )

    def existing(self, key: ModelKey, archive_sha256: str) -> ModelState | None:
        """Return the version when it is there with the same bytes, None when it is not there.

        Raises ``VersionExistsError`` when it is there with other bytes, ``ModelBusyError`` while it is being deleted.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._check_not_deleting(entry)
        if entry.state.manifest.archive_sha256 != archive_sha256:
            raise VersionExistsError(
                f"Version {entry.state.manifest.version} of {entry.state.manifest.name!a} exists with other "
                "contents: upload under a new version, or delete this one first.",
                model_id=key.model_id,
            )
        return entry.state

    def reserve(self, key: ModelKey) -> None:
        """Hold a place for a version while its manifest is written. Raises ``QuotaExceededError``."""
        self.admit(key.namespace_id)
        self._reserved.add(key)

    def release(self, key: ModelKey) -> None:
        """Give a reserved place back."""
        self._reserved.discard(key)

    def created(self, manifest: ModelManifest) -> ModelState:
        """Record a version whose manifest is durable."""
        key = ModelKey(namespace_id=manifest.namespace_id, model_id=manifest.model_id)
        self._reserved.discard(key)
        state = ModelState(
            manifest=manifest,
            status=DeploymentStatus.NOT_DEPLOYED,
            updated_at=manifest.created_at,
            contents=manifest.contents,
        )
        self._entries[key] = _Entry(state=state)
        return state

    # Deploying

    def begin_deploy(self, key: ModelKey) -> int:
        """Start an attempt to deploy and return its number. Raises ``ModelBusyError`` during a delete."""
        entry = self._entry(key)
        self._check_not_deleting(entry)
        state = replace(
            entry.state,
            status=DeploymentStatus.PENDING,
            updated_at=now(),
            deployed_at=None,
            bytes_done=0,
            failure_code=None,
            failure_message=None,
        )
        attempt = entry.attempt + 1
        self._entries[key] = replace(entry, state=state, attempt=attempt)
        return attempt

    def is_current(self, key: ModelKey, attempt: int) -> bool:
        """Tell whether this attempt is the model's latest and still wanted."""
        entry = self._entries.get(key)
        return entry is not None and entry.attempt == attempt and not entry.deleting

    def progressed(self, key: ModelKey, attempt: int, bytes_done: int) -> None:
        """Record how much of the archive an attempt has read, if it is still the current one."""
        if self.is_current(key, attempt):
            entry = self._entries[key]
            self._entries[key] = replace(entry, state=replace(entry.state, bytes_done=bytes_done))

    def deployed(self, key: ModelKey, contents: ArchiveContents) -> ModelState:
        """Record that the weights are in the cluster."""
        entry = self._entry(key)
        at = now()
        state = replace(entry.state, status=DeploymentStatus.DEPLOYED, updated_at=at, deployed_at=at, contents=contents)
        self._entries[key] = replace(entry, state=state)
        return state

    def failed(self, key: ModelKey, error: MixpeekError) -> ModelState:
        """Record why the weights could not be brought into the cluster."""
        entry = self._entry(key)
        state = replace(
            entry.state,
            status=DeploymentStatus.FAILED,
            updated_at=now(),
            failure_code=error.code,
            failure_message=error.message,
        )
        self._entries[key] = replace(entry, state=state)
        return state

    def quarantined(self, key: ModelKey, error: ModelQuarantinedError) -> ModelState:
        """Record that a deployed model harms what computes it; ends any attempt under way."""
        state = self.failed(key, error)
        entry = self._entry(key)
        self._entries[key] = replace(entry, attempt=entry.attempt + 1)
        return state

    def undeployed(self, key: ModelKey) -> ModelState:
        """Record that the weights are not wanted in the cluster; ends any attempt under way."""
        entry = self._entry(key)
        self._check_not_deleting(entry)
        state = replace(
            entry.state,
            status=DeploymentStatus.NOT_DEPLOYED,
            updated_at=now(),
            deployed_at=None,
            failure_code=None,
            failure_message=None,
        )
        self._entries[key] = replace(entry, state=state, attempt=entry.attempt + 1)
        return state

    def check_loadable(self, key: ModelKey) -> ModelState:
        """Return the model if it is deployed or on the way.

        Raises ``ModelNotDeployedError`` otherwise, ``ModelQuarantinedError`` if that is why.
        """
        state = self.check_open(key)
        state.check_not_quarantined()
        if state.status is DeploymentStatus.FAILED:
            raise ModelNotDeployedError(
                f"Model {key.model_id!a} could not be deployed ({state.failure_code}): {state.failure_message}",
                model_id=key.model_id,
            )
        if state.status is DeploymentStatus.NOT_DEPLOYED:
            raise ModelNotDeployedError(
                f"Model {key.model_id!a} is uploaded but not deployed: "
                f"POST /v1/namespaces/{key.namespace_id}/models/{key.model_id}/deploy first.",
                model_id=key.model_id,
            )
        return state

    # Deleting

    def begin_delete(self, key: ModelKey) -> ModelState:
        """Close the model to every other operation. Raises ``ModelBusyError`` when a delete is under way."""
        entry = self._entry(key)
        self._check_not_deleting(entry)
        self._entries[key] = replace(entry, deleting=True, attempt=entry.attempt + 1)
        return entry.state

    def abandon_delete(self, key: ModelKey) -> None:
        """Open the model again after a delete that could not touch the store."""
        entry = self._entry(key)
        state = replace(entry.state, status=DeploymentStatus.NOT_DEPLOYED, deployed_at=None)
        self._entries[key] = replace(entry, state=state, deleting=False)

    def deleted(self, key: ModelKey) -> None:
        """Forget a model whose manifest is gone."""
        self._entries.pop(key, None)

    def _entry(self, key: ModelKey) -> _Entry:
        entry = self._entries.get(key)
        if entry is None:
            raise ModelNotFoundError(
                f"There is no model {key.model_id[:80]!a} in this namespace: "
                "list the namespace's models to see what there is.",
            )
        return entry

    @staticmethod
    def _check_not_deleting(entry: _Entry) -> None:
        if entry.deleting:
            raise ModelBusyError(
                f"Model {entry.state.manifest.model_id!a} is being deleted: try again when that is done.",
                model_id=entry.state.manifest.model_id,
            )
