"""The platform's durable records, kept as JSON blobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from mixpeek_ray.core.aliases import AliasRef, ModelAlias
from mixpeek_ray.core.errors import ConflictError, CorruptStoreError, NotFoundError, VersionExistsError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import ApiKey, DeploymentMarker, ModelManifest, Namespace, Organization
from mixpeek_ray.store import layout
from mixpeek_ray.store.base import BlobInfo, BlobStore
from mixpeek_ray.store.codec import RecordCodec

_logger = get_logger(__name__)

# Loads are read this many at a time: against S3 each read is a round trip of some 20 ms, and a restarted registry
# should have its thousand records within two seconds.
_PARALLEL_READS = 16

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class RecordProblem:
    """A stored record that was skipped: where it lies and why it cannot be used."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[R]):
    """Every usable record of a kind, by key, and every unusable one.

    One bad record never stops the rest. A model version whose manifest is bad is not served, and cannot be uploaded
    again until someone restores or deletes that manifest: its key is taken.
    """

    records: tuple[R, ...]
    problems: tuple[RecordProblem, ...]


class RecordStore:
    """Typed access to what ``layout`` describes. All calls block; any thread may call.

    Every method raises ``StorageUnavailableError`` and, when writing, ``DiskFullError``.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._namespaces = RecordCodec(Namespace)
        self._manifests = RecordCodec(ModelManifest)
        self._deployments = RecordCodec(DeploymentMarker)
        self._aliases = RecordCodec(ModelAlias)
        self._organizations = RecordCodec(Organization)
        self._keys = RecordCodec(ApiKey)

    # Model versions

    def create_manifest(self, manifest: ModelManifest) -> None:
        """Make a model version exist. Raises ``VersionExistsError``: of many racing callers one succeeds."""
        key = layout.manifest_key(manifest.namespace_id, manifest.model_id)
        try:
            self._blobs.create(key, self._manifests.encode(manifest))
        except FileExistsError:
            raise VersionExistsError(
                f"Version {manifest.version} of {manifest.name!a} exists already; upload another version."
            ) from None

    def load_manifests(self) -> Loaded[ModelManifest]:
        """Return every model version of every namespace."""
        return self._load(
            layout.NAMESPACES,
            layout.MANIFEST_FILE,
            self._manifests,
            lambda manifest: layout.manifest_key(manifest.namespace_id, manifest.model_id),
        )

    def delete_model(self, namespace_id: str, model_id: str) -> None:
        """Remove a model version's records, its manifest first; its archive, which others may share, stays."""
        self._blobs.delete(layout.manifest_key(namespace_id, model_id))
        self._blobs.delete(layout.deployment_key(namespace_id, model_id))

    # Deployment markers

    def put_deployment(self, marker: DeploymentMarker) -> None:
        """Record that a model version should be deployed."""
        key = layout.deployment_key(marker.namespace_id, marker.model_id)
        self._blobs.put(key, self._deployments.encode(marker))

    def delete_deployment(self, namespace_id: str, model_id: str) -> None:
        """Record that a model version should not be deployed."""
        self._blobs.delete(layout.deployment_key(namespace_id, model_id))

    def find_deployment(self, namespace_id: str, model_id: str) -> DeploymentMarker | None:
        """Return a model version's marker, None where there is none. Raises ``CorruptStoreError``."""
        try:
            return self._deployments.decode(self._blobs.read(layout.deployment_key(namespace_id, model_id)))
        except FileNotFoundError:
            return None

    def load_deployments(self) -> Loaded[DeploymentMarker]:
        """Return every marker, also one whose manifest is gone (a delete that was cut short)."""
        return self._load(
            layout.NAMESPACES,
            layout.DEPLOYMENT_FILE,
            self._deployments,
            lambda marker: layout.deployment_key(marker.namespace_id, marker.model_id),
        )

    # Aliases

    def put_alias(self, alias: ModelAlias) -> None:
        """Write an alias, replacing any by that name."""
        self._blobs.put(layout.alias_key(alias.ref), self._aliases.encode(alias))

    def delete_alias(self, ref: AliasRef) -> None:
        """Remove an alias; one that is not there is no error."""
        self._blobs.delete(layout.alias_key(ref))

    def load_aliases(self) -> Loaded[ModelAlias]:
        """Return every alias of every namespace."""
        return self._load(
            layout.NAMESPACES, layout.ALIAS_SUFFIX, self._aliases, lambda alias: layout.alias_key(alias.ref)
        )

    # Namespaces, organisations, keys

    def create_namespace(self, namespace: Namespace) -> None:
        """Make a namespace. Raises ``ConflictError`` when its id is taken."""
        self._create(layout.namespace_key(namespace.namespace_id), self._namespaces.encode(namespace), "namespace")

    def load_namespaces(self) -> Loaded[Namespace]:
        """Return every namespace of every organisation."""
        return self._load(
            layout.NAMESPACES,
            layout.NAMESPACE_FILE,
            self._namespaces,
            lambda namespace: layout.namespace_key(namespace.namespace_id),
        )

    def create_organization(self, organization: Organization) -> None:
        """Make an organisation. Raises ``ConflictError`` when its id is taken."""
        key = layout.organization_key(organization.organization_id)
        self._create(key, self._organizations.encode(organization), "organization")

    def put_organization(self, organization: Organization) -> None:
        """Write an organisation's record, replacing any."""
        key = layout.organization_key(organization.organization_id)
        self._blobs.put(key, self._organizations.encode(organization))

    def load_organizations(self) -> Loaded[Organization]:
        """Return every organisation."""
        return self._load(
            layout.ORGANIZATIONS,
            layout.RECORD_SUFFIX,
            self._organizations,
            lambda organization: layout.organization_key(organization.organization_id),
        )

    def create_key(self, key: ApiKey) -> None:
        """Make an API key. Raises ``ConflictError`` when its id is taken."""
        self._create(layout.api_key_key(key.key_id), self._keys.encode(key), "API key")

    def put_key(self, key: ApiKey) -> None:
        """Write an API key's record, replacing any (to revoke it)."""
        self._blobs.put(layout.api_key_key(key.key_id), self._keys.encode(key))

    def load_keys(self) -> Loaded[ApiKey]:
        """Return every API key, revoked ones included."""
        return self._load(
            layout.KEYS,
            layout.RECORD_SUFFIX,
            self._keys,
            lambda key: layout.api_key_key(key.key_id),
        )

    # Archives and uploads

    def promote_archive(self, temporary_key: str, sha256: str) -> None:
        """Move an upload to its content's address; a repeated call succeeds.

        Raises ``NotFoundError`` when the upload is gone and no such archive is there.
        """
        try:
            self._blobs.promote(temporary_key, layout.archive_key(sha256))
        except FileNotFoundError:
            if not self._blobs.exists(layout.archive_key(sha256)):
                raise NotFoundError("The uploaded bytes are no longer stored; upload the archive again.") from None

    def delete_archive(self, sha256: str) -> None:
        """Remove an archive; the caller knows that no manifest names it."""
        self._blobs.delete(layout.archive_key(sha256))

    def list_archives(self) -> Iterator[str]:
        """Yield the sha256 of every archive."""
        return (layout.archive_sha256(blob.key) for blob in self._blobs.list(layout.ARCHIVES))

    def list_uploads(self) -> Iterator[BlobInfo]:
        """Yield every completed upload that was neither promoted nor deleted yet."""
        return self._blobs.list(layout.UPLOADS)

    def delete_upload(self, temporary_key: str) -> None:
        """Remove an upload; one that is not there is no error."""
        self._blobs.delete(temporary_key)

    def discard_abandoned(self, older_than: timedelta) -> int:
        """Remove the unfinished writes of processes that died; return how many (see ``BlobStore``).

        Completed uploads stay: whoever knows which are still awaited deletes the others.
        """
        return self._blobs.discard_abandoned(older_than)

    def _create(self, key: str, data: bytes, kind: str) -> None:
        try:
            self._blobs.create(key, data)
        except FileExistsError:
            raise ConflictError(f"This {kind} exists already; choose another id.") from None

    def _load(self, prefix: str, suffix: str, codec: RecordCodec[R], key_of: Callable[[R], str]) -> Loaded[R]:
        keys = sorted(blob.key for blob in self._blobs.list(prefix) if blob.key.endswith(suffix))
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            results = list(pool.map(lambda key: self._load_one(key, codec, key_of), keys))
        problems = tuple(result for result in results if isinstance(result, RecordProblem))
        for problem in problems:
            _logger.error("skipped the record %s: %s", problem.key, problem.reason)
        records = tuple(result for result in results if result is not None and not isinstance(result, RecordProblem))
        return Loaded(records=records, problems=problems)

    def _load_one(self, key: str, codec: RecordCodec[R], key_of: Callable[[R], str]) -> R | RecordProblem | None:
        """Return the record at ``key``, None when it was deleted since it was listed."""
        try:
            record = codec.decode(self._blobs.read(key))
        except FileNotFoundError:
            return None
        except CorruptStoreError as error:
            return RecordProblem(key=key, reason=error.message)
        if key_of(record) != key:
            return RecordProblem(
                key=key, reason="It describes another record than its key names; restore or delete it."
            )
        return record
