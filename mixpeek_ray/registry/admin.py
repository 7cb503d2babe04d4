"""What an operator on the cluster may do with keys; every call blocks."""

from __future__ import annotations

from typing import Any

from mixpeek_ray.core.errors import RegistryUnavailableError
from mixpeek_ray.core.records import ApiKey, Role, Tier
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.registry.accounts import DEVELOPMENT_ORGANIZATION, CreatedKey
from mixpeek_ray.registry.calls import call_blocking
from mixpeek_ray.registry.handles import find_registry


def create_key(*, organization: str | None, name: str, role: Role, tier: Tier | None = None) -> CreatedKey:
    """Create a key; without an organisation it is the development one's, with a tier a missing one is created.

    Raises ``NotFoundError`` for an unknown organisation, ``RegistryUnavailableError`` when no platform runs.
    """
    created: CreatedKey = _call("create_key", organization or DEVELOPMENT_ORGANIZATION, tier, name, role)
    return created


def list_keys() -> tuple[ApiKey, ...]:
    """Return every key's record, oldest first."""
    keys: tuple[ApiKey, ...] = _call("list_keys")
    return keys


def revoke_key(key_id: str) -> ApiKey:
    """End a key's life everywhere within 5 s. Raises ``KeyNotFoundError``."""
    key: ApiKey = _call("revoke_key", key_id)
    return key


def _call(method: str, *arguments: Any) -> Any:
    try:
        registry = find_registry()
    except ValueError:
        raise RegistryUnavailableError("No platform runs on this cluster: start one with `mixpeek-ray up`.") from None
    return call_blocking(getattr(registry, method).remote(*arguments), get_settings().registry_timeout_s)
