"""The actor that checks archives before their upload is acknowledged, away from the ingress and the registry."""

from __future__ import annotations

import threading

from mixpeek_ray.core.errors import StorageUnavailableError
from mixpeek_ray.core.priority import yield_to_answers
from mixpeek_ray.core.records import ArchiveContents, ModelFormat
from mixpeek_ray.formats.inspect import inspect_archive
from mixpeek_ray.formats.sandbox import warm_up
from mixpeek_ray.registry.spool import work_folder
from mixpeek_ray.store.factory import open_store

INSPECTOR_NAME = "ArchiveInspector"
# Checks in flight: one a core of the smallest machine; more would only share those cores.
INSPECTOR_CONCURRENCY = 2


class ArchiveInspector:
    """Checks uploaded archives. The weight files themselves are opened in a sandbox, never in this process."""

    def __init__(self, *, store_url: str, spool_dir: str | None) -> None:
        yield_to_answers()
        self._store = open_store(store_url)
        self._spool_dir = spool_dir
        # The first user's upload should not wait for the sandbox to import torch.
        threading.Thread(target=warm_up, daemon=True).start()

    def inspect(self, temporary_key: str, model_format: ModelFormat) -> ArchiveContents:
        """Return what the archive under ``temporary_key`` holds. Raises ``ArchiveRefusedError``."""
        # The actor's calls run on threads of their own.
        yield_to_answers()
        try:
            stream = self._store.open_read(temporary_key)
        except FileNotFoundError:
            raise StorageUnavailableError("The upload is no longer in the store: upload again.") from None
        with stream, work_folder(self._spool_dir) as folder:
            return inspect_archive(stream, model_format, folder)
