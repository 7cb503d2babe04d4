"""The task that brings an archive's weights into the object store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import ray

from mixpeek_ray.core.errors import MixpeekError, StorageUnavailableError
from mixpeek_ray.core.priority import yield_to_answers
from mixpeek_ray.core.records import ArchiveContents, ModelFormat, ModelManifest, ResourceRequest
from mixpeek_ray.registry.capacity import check_capacity
from mixpeek_ray.registry.handles import find_registry
from mixpeek_ray.registry.spool import work_folder
from mixpeek_ray.registry.state import ModelKey
from mixpeek_ray.store.factory import open_store
from mixpeek_ray.store.layout import archive_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mixpeek_ray.formats.base import Companion
    from mixpeek_ray.formats.inspect import PackedArchive
    from mixpeek_ray.formats.packed import WeightIndex

# A worker that dies (out of memory, a lost node, kill -9) is replaced this often before the deploy fails.
_MAX_RETRIES = 3
# Often enough for a person who watches, and nothing to the registry.
_REPORT_PERIOD_S = 0.5


@dataclass(frozen=True, kw_only=True)
class MaterializeJob:
    """What a materialize task needs to know; small, because lineage keeps it for as long as the weights live."""

    model: ModelKey
    # Which attempt to deploy the model this is: what it reports counts only while it is the latest.
    attempt: int
    store_url: str
    archive_sha256: str
    model_format: ModelFormat
    resources: ResourceRequest
    spool_dir: str | None

    @classmethod
    def of(cls, manifest: ModelManifest, *, attempt: int, store_url: str, spool_dir: str | None) -> MaterializeJob:
        """Return the job for one model version."""
        return cls(
            model=ModelKey(namespace_id=manifest.namespace_id, model_id=manifest.model_id),
            attempt=attempt,
            store_url=store_url,
            archive_sha256=manifest.archive_sha256,
            model_format=manifest.model_format,
            resources=manifest.resources,
            spool_dir=spool_dir,
        )


@dataclass(frozen=True, kw_only=True)
class MaterializedRefs:
    """What the task returns, owned by its submitter; Ray runs the task again when a node that holds it is lost."""

    # Of ``ArchiveContents``.
    contents: Any
    # Of ``(WeightIndex, uint8 array)``.
    weights: Any
    # Of a tuple of ``Companion``.
    companions: Any


def submit(job: MaterializeJob, resources: ResourceRequest | None, *, name: str) -> MaterializedRefs:
    """Start the task, reserving ``resources`` of a node; None: nothing, so that it begins on a full cluster too."""
    options = (
        {"num_cpus": 0}
        if resources is None
        else {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "memory": resources.memory_bytes,
        }
    )
    contents, weights, companions = _TASK.options(name=name, **options).remote(job)
    return MaterializedRefs(contents=contents, weights=weights, companions=companions)


def _materialize(
    job: MaterializeJob,
) -> tuple[ArchiveContents, tuple[WeightIndex, NDArray[np.uint8]], tuple[Companion, ...]]:
    # Ray runs nothing else in this worker than the registry's tasks.
    yield_to_answers()
    progress = _Progress(job)
    progress.report(0)
    with work_folder(job.spool_dir) as folder:
        packed = _pack(job, folder, progress)
        weights_bytes = packed.contents.weights_bytes
        # Known only now where the archive was too large to be checked on upload.
        check_capacity(job.resources, weights_bytes=weights_bytes)
        # The mapping outlives the file's name: Ray copies it into the object store from the page cache.
        data = packed.map_buffer()
    return packed.contents, (packed.index, data), packed.companions


def _pack(job: MaterializeJob, work_dir: Path, progress: _Progress) -> PackedArchive:
    from mixpeek_ray.formats.inspect import pack_archive

    store = open_store(job.store_url)
    try:
        stream = store.open_read(archive_key(job.archive_sha256))
    except FileNotFoundError:
        raise MixpeekError("The model's archive is missing from the store: upload the version again.") from None
    with stream:
        reader = cast("BinaryIO", _ReportingReader(stream, progress))
        return pack_archive(reader, job.model_format, work_dir, expected_sha256=job.archive_sha256)


class _Progress:
    """Tells the registry how far a task is. Nobody waits for the answer: a registry that is gone holds up no work."""

    def __init__(self, job: MaterializeJob) -> None:
        self._job = job
        self._registry = find_registry()

    def report(self, bytes_done: int) -> None:
        """Tell it; 0 says that the task has begun."""
        self._registry.report_progress.remote(self._job.model, self._job.attempt, bytes_done)


class _ReportingReader:
    """Reads from a stream and reports, now and then, how far it is."""

    def __init__(self, stream: BinaryIO, progress: _Progress) -> None:
        self._stream = stream
        self._progress = progress
        self._done_bytes = 0
        self._reported_at = time.monotonic()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._done_bytes += len(data)
        if time.monotonic() - self._reported_at >= _REPORT_PERIOD_S:
            self._reported_at = time.monotonic()
            self._progress.report(self._done_bytes)
        return data


_TASK = ray.remote(num_returns=3, max_retries=_MAX_RETRIES, retry_exceptions=[StorageUnavailableError])(_materialize)
