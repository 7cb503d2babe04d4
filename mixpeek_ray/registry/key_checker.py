"""Checking API keys in an ingress replica, against a snapshot of the registry's."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any, Self

from mixpeek_ray.core.errors import InvalidApiKeyError, RegistryUnavailableError
from mixpeek_ray.core.keys import KeyRing
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import Principal
from mixpeek_ray.registry.calls import call

_log = get_logger(__name__)

# Keys revoked anywhere are refused everywhere within 5 s (hardening.md): a poll a second leaves room for slow ones.
_POLL_S = 1.0
# An unknown key may be a new one: the ring is read again, but not more often than this for all callers together.
_REREAD_S = 0.25


class KeyChecker:
    """Tells who a key or a signed URL speaks for; one for each ingress replica, used from its event loop."""

    def __init__(self, registry: Any, *, timeout_s: float) -> None:
        self._registry = registry
        self._timeout_s = timeout_s
        self._ring: KeyRing | None = None
        self._read_at = 0.0
        self._lock = asyncio.Lock()
        self._poll: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, registry: Any, *, timeout_s: float) -> Self:
        """Return a checker whose keys are read, and from now on kept fresh. Raises ``RegistryUnavailableError``."""
        checker = cls(registry, timeout_s=timeout_s)
        await checker._read()
        checker._poll = asyncio.create_task(checker._keep_fresh())
        return checker

    async def authenticate(self, api_key: str) -> Principal:
        """Return who the key speaks for. Raises ``InvalidApiKeyError``."""
        try:
            return (await self._keys()).authenticate(api_key)
        except InvalidApiKeyError:
            if not await self._reread():
                raise
            return (await self._keys()).authenticate(api_key)

    async def sign_url(self, principal: Principal, path: str, expires_at: datetime) -> str:
        """Return the query that lets its bearer PUT to ``path`` as ``principal``."""
        return (await self._keys()).sign_url(principal.key_id, path, expires_at)

    async def authenticate_url(self, path: str, query: str) -> Principal:
        """Return who signed this URL. Raises ``InvalidApiKeyError``."""
        return (await self._keys()).authenticate_url(path, query)

    async def _keys(self) -> KeyRing:
        if self._ring is None:
            await self._read()
        assert self._ring is not None  # noqa: S101  # read above, or that raised
        return self._ring

    async def _read(self) -> None:
        known = self._ring.version if self._ring is not None else None
        snapshot = await call(self._registry.key_ring.remote(known), self._timeout_s)
        self._read_at = time.monotonic()
        if snapshot is not None:
            self._ring = KeyRing(snapshot)

    async def _reread(self) -> bool:
        """Read the keys unless that was done just now; tell whether they changed."""
        asked_at = time.monotonic()
        before = self._ring
        async with self._lock:
            if self._read_at < asked_at - _REREAD_S or self._ring is None:
                await self._read()
        return self._ring is not before

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self._read()
            except RegistryUnavailableError:
                # No registry, no revocations: only it writes them. The ring stays true until it is back.
                _log.warning("key ring not refreshed: the registry does not answer")
