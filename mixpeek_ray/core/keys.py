"""API keys: how they are made, hashed and looked up."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlencode

from mixpeek_ray.core.errors import InvalidApiKeyError
from mixpeek_ray.core.records import ApiKey, Organization, Principal

# "sk_" and 32 random bytes in URL-safe base64 without padding.
_KEY = re.compile(r"sk_[A-Za-z0-9_-]{43}", re.ASCII)
_KEY_RANDOM_BYTES = 32
# Seconds since 1970 in a signed URL.
_EXPIRES = re.compile(r"[0-9]{1,12}", re.ASCII)


def new_api_key() -> str:
    """Return a fresh key: ``sk_`` and 256 random bits."""
    return f"sk_{secrets.token_urlsafe(_KEY_RANDOM_BYTES)}"


def digest_key(secret: bytes, api_key: str) -> str:
    """Return the hex HMAC-SHA256 that is stored in place of ``api_key``."""
    return hmac.new(secret, api_key.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, kw_only=True)
class KeyRingSnapshot:
    """Everything needed to check keys away from the registry, as of ``version``."""

    # Changes with every key or organisation, and with every restart of the registry.
    version: str
    secret: bytes = field(repr=False)
    keys: tuple[ApiKey, ...]
    organizations: tuple[Organization, ...]


class KeyRing:
    """Checks keys against one snapshot."""

    def __init__(self, snapshot: KeyRingSnapshot) -> None:
        self.version = snapshot.version
        self._secret = snapshot.secret
        self._keys: Mapping[str, ApiKey] = {key.digest: key for key in snapshot.keys if key.revoked_at is None}
        self._keys_by_id = {key.key_id: key for key in self._keys.values()}
        self._organizations = {organization.organization_id: organization for organization in snapshot.organizations}

    def authenticate(self, api_key: str) -> Principal:
        """Return who ``api_key`` speaks for. Raises ``InvalidApiKeyError``."""
        if _KEY.fullmatch(api_key) is None:
            raise InvalidApiKeyError(
                "The API key is malformed: send the whole key, `Authorization: Bearer sk_…`, as it was shown "
                "when it was created."
            )
        digest = digest_key(self._secret, api_key)
        # The look-up's timing depends on a digest that nobody without the secret can steer; the comparison is
        # constant-time all the same.
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise InvalidApiKeyError(
                "The API key is unknown or was revoked: create one with `mixpeek-ray keys create`."
            )
        return self._principal(key)

    def sign_url(self, key_id: str, path: str, expires_at: datetime) -> str:
        """Return the query that lets its bearer PUT to ``path`` as the key would, until ``expires_at`` (whole seconds).

        It ends with the key: one that is revoked takes its URLs along.
        """
        expires_s = int(expires_at.timestamp())
        signature = self._url_signature(key_id, path, expires_s)
        return urlencode({"key_id": key_id, "expires": expires_s, "signature": signature})

    def authenticate_url(self, path: str, query: str) -> Principal:
        """Return whose key signed ``path`` with ``query``. Raises ``InvalidApiKeyError``, also once it expired."""
        found = parse_qs(query)
        key_id, expires, signature = (found.get(name, [""])[0] for name in ("key_id", "expires", "signature"))
        key = self._keys_by_id.get(key_id)
        expires_s = int(expires) if _EXPIRES.fullmatch(expires) else 0
        expected = self._url_signature(key_id, path, expires_s)
        is_signed = hmac.compare_digest(expected.encode(), signature.encode())
        if key is None or not is_signed or expires_s <= datetime.now(UTC).timestamp():
            raise InvalidApiKeyError(
                "This signed URL is not valid here: it expired, was changed, or its key was revoked. "
                "Send an API key instead, or create another upload."
            )
        return self._principal(key)

    def _url_signature(self, key_id: str, path: str, expires_s: int) -> str:
        # No API key begins like this, so none of these is ever a key's digest.
        return digest_key(self._secret, f"url\nPUT\n{path}\n{key_id}\n{expires_s}")

    def _principal(self, key: ApiKey) -> Principal:
        organization = self._organizations.get(key.organization_id)
        if organization is None:
            raise InvalidApiKeyError("The API key's organisation no longer exists: use a key of another one.")
        return Principal(key_id=key.key_id, organization=organization, role=key.role)
