"""The actor that checks archives before their upload is acknowledged, away from the ingress and the registry."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mixpeek_ray.core.errors import StorageUnavailableError
from mixpeek_ray.core.records import ArchiveContents, ModelFormat
from mixpeek_ray.formats.inspect import inspect_archive
from mixpeek_ray.formats.sandbox import run_limited
from mixpeek_ray.registry.materialize import PARSER_MEMORY_BYTES
from mixpeek_ray.store.factory import open_store

INSPECTOR_NAME = "ArchiveInspector"
# Checks in flight: one a core of the smallest machine; more would only share those cores.
INSPECTOR_CONCURRENCY = 2
# hardening.md: every bad input is answered within 5 s, which leaves the upload one of them.
_INSPECT_SECONDS = 4.0


class ArchiveInspector:
    """Checks uploaded archives, each in a child process with its own memory and time limit."""

    def __init__(self, *, store_url: str, spool_dir: str | None) -> None:
        self._store_url = store_url
        self._spool_dir = spool_dir

    def inspect(self, temporary_key: str, model_format: ModelFormat) -> ArchiveContents:
        """Return what the archive under ``temporary_key`` holds. Raises ``ArchiveRefusedError``."""
        work_dir = Path(tempfile.mkdtemp(prefix="mixpeek-", dir=self._spool_dir))
        try:
            return run_limited(
                _inspect,
                self._store_url,
                temporary_key,
                model_format,
                work_dir,
                memory_bytes=PARSER_MEMORY_BYTES,
                seconds=_INSPECT_SECONDS,
            )
        finally:
            shutil.rmtree(work_dir, ignore_errors=True)


def _inspect(store_url: str, temporary_key: str, model_format: ModelFormat, work_dir: Path) -> ArchiveContents:
    try:
        stream = open_store(store_url).open_read(temporary_key)
    except FileNotFoundError:
        raise StorageUnavailableError("The upload is no longer in the store: upload again.") from None
    with stream:
        return inspect_archive(stream, model_format, work_dir)
