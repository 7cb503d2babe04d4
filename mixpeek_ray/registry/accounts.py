"""Organisations, their namespaces and their keys: decided here, durable in the store."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from mixpeek_ray.core.errors import InvalidNameError, KeyNotFoundError, NamespaceNotFoundError, NotFoundError
from mixpeek_ray.core.ids import is_valid_name, new_id
from mixpeek_ray.core.keys import KeyRingSnapshot, digest_key, new_api_key
from mixpeek_ray.core.private_files import write_private
from mixpeek_ray.core.records import ApiKey, Namespace, Organization, Role, Tier
from mixpeek_ray.registry.state import now
from mixpeek_ray.store.records import RecordStore

# HMAC-SHA256's block size; more secret than this adds nothing.
_SECRET_BYTES = 64
_MAX_DISPLAY_NAME_CHARACTERS = 64
DEVELOPMENT_ORGANIZATION = "development"


@dataclass(frozen=True, kw_only=True)
class CreatedKey:
    """A new key: the only time the key itself is seen."""

    api_key: str = field(repr=False)
    record: ApiKey


def load_or_create_secret(path: Path) -> bytes:
    """Return the platform's secret, making it (0600) the first time."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, secrets.token_bytes(_SECRET_BYTES))
        return path.read_bytes()


class Accounts:
    """Who may do what. Methods that change something block on the store; call them from one thread at a time."""

    def __init__(self, records: RecordStore, secret: bytes) -> None:
        self._records = records
        self._secret = secret
        self._organizations = {item.organization_id: item for item in records.load_organizations().records}
        self._namespaces = {item.namespace_id: item for item in records.load_namespaces().records}
        self._keys = {item.key_id: item for item in records.load_keys().records}
        # Unique to this process, so that a restarted registry never repeats a version.
        self._epoch = secrets.token_hex(8)
        self._changes = 0

    def snapshot(self, known_version: str | None) -> KeyRingSnapshot | None:
        """Return what is needed to check keys, or None when ``known_version`` is the current one."""
        version = f"{self._epoch}.{self._changes}"
        if version == known_version:
            return None
        return KeyRingSnapshot(
            version=version,
            secret=self._secret,
            keys=tuple(self._keys.values()),
            organizations=tuple(self._organizations.values()),
        )

    # Organisations

    def bootstrap_development(self, key_file: Path) -> None:
        """On an empty store, create the development organisation and leave its admin key in ``key_file`` (0600)."""
        if self._organizations:
            return
        organization = self._add_organization(
            DEVELOPMENT_ORGANIZATION, tier=Tier.ENTERPRISE, auto_create_namespaces=True
        )
        created = self.create_key(organization.organization_id, name="development", role=Role.ADMIN)
        key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(key_file, created.api_key.encode())

    def organization_named(self, name_or_id: str, *, create_with_tier: Tier | None = None) -> Organization:
        """Return the organisation with this id or name. Raises ``NotFoundError`` unless it may be created."""
        for organization in self._organizations.values():
            if name_or_id in (organization.organization_id, organization.name):
                return organization
        if create_with_tier is None:
            raise NotFoundError(
                f"There is no organisation {name_or_id[:80]!a}: name a tier as well to create it.",
            )
        return self._add_organization(name_or_id, tier=create_with_tier, auto_create_namespaces=False)

    def _add_organization(self, name: str, *, tier: Tier, auto_create_namespaces: bool) -> Organization:
        organization = Organization(
            organization_id=new_id("org"),
            name=_check_display_name(name),
            tier=tier,
            created_at=now(),
            auto_create_namespaces=auto_create_namespaces,
        )
        self._records.put_organization(organization)
        self._organizations[organization.organization_id] = organization
        self._changes += 1
        return organization

    # Keys

    def create_key(self, organization_id: str, *, name: str, role: Role) -> CreatedKey:
        """Create a key for an organisation."""
        api_key = new_api_key()
        record = ApiKey(
            key_id=new_id("key"),
            organization_id=organization_id,
            name=_check_display_name(name),
            role=role,
            digest=digest_key(self._secret, api_key),
            created_at=now(),
        )
        self._save_key(record)
        return CreatedKey(api_key=api_key, record=record)

    def keys(self) -> tuple[ApiKey, ...]:
        """Return every key, oldest first, revoked ones included."""
        return tuple(sorted(self._keys.values(), key=lambda key: key.created_at))

    def revoke_key(self, key_id: str) -> ApiKey:
        """End a key's life; revoking one twice is no error. Raises ``KeyNotFoundError``."""
        record = self._keys.get(key_id)
        if record is None:
            raise KeyNotFoundError(f"There is no key {key_id[:80]!a}: `mixpeek-ray keys list` shows what there is.")
        if record.revoked_at is None:
            record = replace(record, revoked_at=now())
            self._save_key(record)
        return record

    def _save_key(self, record: ApiKey) -> None:
        self._records.put_key(record)
        self._keys[record.key_id] = record
        self._changes += 1

    # Namespaces

    def namespaces(self, organization_id: str) -> tuple[Namespace, ...]:
        """Return an organisation's namespaces, by id."""
        return tuple(self._of(organization_id))

    def create_namespace(self, organization_id: str, name: str) -> Namespace:
        """Create a namespace with a new id."""
        return self._add_namespace(organization_id, namespace_id=new_id("ns"), name=_check_display_name(name))

    def owned_namespace(self, organization_id: str, namespace_id: str) -> Namespace | None:
        """Return the namespace if it is the organisation's, None if it is nobody's but may be made.

        Raises ``NamespaceNotFoundError``, the same for another organisation's namespace as for none.
        """
        found = self._namespaces.get(namespace_id)
        if found is not None and found.organization_id == organization_id:
            return found
        organization = self._organizations.get(organization_id)
        may_create = organization is not None and organization.auto_create_namespaces
        if found is not None or not may_create or not is_valid_name(namespace_id):
            raise NamespaceNotFoundError(
                f"There is no namespace {namespace_id[:80]!a} in your organisation: "
                "GET /v1/namespaces lists yours, POST /v1/namespaces makes one.",
            )
        return None

    def check_namespace_exists(self, namespace_id: str) -> None:
        """Return if any organisation has this namespace. Raises ``NamespaceNotFoundError``."""
        if namespace_id not in self._namespaces:
            raise NamespaceNotFoundError(
                f"There is no namespace {namespace_id[:80]!a} on this platform: upload a model to it first, or check "
                "MIXPEEK_NAMESPACE.",
            )

    def adopt_namespace(self, organization_id: str, namespace_id: str) -> Namespace:
        """Make the namespace that a development organisation named for the first time."""
        found = self.owned_namespace(organization_id, namespace_id)
        return found or self._add_namespace(organization_id, namespace_id=namespace_id, name=namespace_id)

    def _add_namespace(self, organization_id: str, *, namespace_id: str, name: str) -> Namespace:
        namespace = Namespace(namespace_id=namespace_id, organization_id=organization_id, name=name, created_at=now())
        self._records.create_namespace(namespace)
        self._namespaces[namespace_id] = namespace
        return namespace

    def _of(self, organization_id: str) -> Iterable[Namespace]:
        owned = (item for item in self._namespaces.values() if item.organization_id == organization_id)
        return sorted(owned, key=lambda namespace: namespace.namespace_id)


def _check_display_name(name: str) -> str:
    if not name or len(name) > _MAX_DISPLAY_NAME_CHARACTERS or not name.isprintable():
        raise InvalidNameError(
            f"A name must be 1 to {_MAX_DISPLAY_NAME_CHARACTERS} printable characters.", field="name"
        )
    return name
