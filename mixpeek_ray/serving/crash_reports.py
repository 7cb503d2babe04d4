"""Telling the registry which models crash the replicas of a node, or the processes that replicas start for them."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mixpeek_ray.core.crashes import ModelCrash
from mixpeek_ray.core.errors import MixpeekError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.node_folder import node_folder_of
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.calls import call
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.servables.base import ServableRef
from mixpeek_ray.servables.crash_file import AbandonedFile, CrashFile, Suspect, abandoned_files
from mixpeek_ray.serving.pool_programs import ProgramCrashedError

_log = get_logger(__name__)

# How soon a model that crashed a replica is known where another replica of the node lives.
_CHECK_S = 2.0


@dataclass(frozen=True, kw_only=True)
class _Told:
    suspect: Suspect
    crash: ModelCrash


class CrashReporter:
    """One replica's crash file, and its eye on those of the replicas that are gone."""

    def __init__(self, registry: Any, settings: Settings) -> None:
        self._registry = registry
        self._timeout_s = settings.registry_timeout_s
        # Another platform on this node has models, and a registry, of its own.
        platform = hashlib.sha256(settings.resolved_store_url.encode()).hexdigest()[:16]
        self._folder = node_folder_of(settings, f"crashes-{platform}")
        self._file = CrashFile(self._folder)
        self._file.take_reports()
        # Of processes that this replica started; appended to on any thread.
        self._programs: list[_Told] = []

    @contextmanager
    def watch(self, ref: ServableRef) -> Iterator[None]:
        """Hold, while the block runs, that this thread works on a model; for any thread."""
        suspect = Suspect(namespace_id=ref.namespace_id, model_id=ref.model_id, content=ref.content)
        with self._file.working_on(suspect):
            try:
                yield
            except ProgramCrashedError as error:
                crash = ModelCrash(crash_id=secrets.token_hex(16), at=datetime.now(UTC), reason=error.reason)
                self._programs.append(_Told(suspect=suspect, crash=crash))
                raise

    async def report(self) -> None:
        """Tell the registry of every crash since the last report; what it does not hear is told again the next time."""
        while self._programs:
            if not await self._tell(self._programs[0]):
                return
            del self._programs[0]
        try:
            for file in abandoned_files(self._folder):
                try:
                    await self._settle(file)
                finally:
                    file.leave()
        except OSError as error:
            _log.warning("crashed replicas were not looked for (%s)", type(error).__name__)

    async def keep_reporting(self) -> None:
        """Report, for ever."""
        while True:
            await asyncio.sleep(_CHECK_S)
            await self.report()

    async def _settle(self, file: AbandonedFile) -> None:
        found = await asyncio.to_thread(file.crash)
        if found is None or await self._tell(_Told(suspect=found[0], crash=found[1])):
            file.remove()

    async def _tell(self, told: _Told) -> bool:
        """Tell whether the registry knows of it now."""
        key = ModelKey(namespace_id=told.suspect.namespace_id, model_id=told.suspect.model_id)
        try:
            await call(self._registry.report_crash.remote(key, told.suspect.content, told.crash), self._timeout_s)
        except MixpeekError as error:
            _log.warning(
                "the registry was not told of a crash",
                extra={"namespace_id": key.namespace_id, "model_id": key.model_id, "error_code": error.code},
            )
            return False
        return True
