"""The task that brings an archive's weights into the object store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from mixpeek_ray.core.errors import MixpeekError, StorageUnavailableError
from mixpeek_ray.core.records import ArchiveContents, ModelFormat, ModelManifest, ResourceRequest
from mixpeek_ray.registry.capacity import check_capacity
from mixpeek_ray.registry.spool import work_folder
from mixpeek_ray.store.factory import open_store
from mixpeek_ray.store.layout import archive_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mixpeek_ray.formats.inspect import PackedArchive
    from mixpeek_ray.formats.packed import WeightIndex

# A worker that dies (out of memory, a lost node, kill -9) is replaced this often before the deploy fails.
_MAX_RETRIES = 3


@dataclass(frozen=True, kw_only=True)
class MaterializeJob:
    """What a materialize task needs to know; small, because lineage keeps it for as long as the weights live."""

    store_url: str
    archive_sha256: str
    model_format: ModelFormat
    resources: ResourceRequest
    spool_dir: str | None

    @classmethod
    def of(cls, manifest: ModelManifest, *, store_url: str, spool_dir: str | None) -> MaterializeJob:
        """Return the job for one model version."""
        return cls(
            store_url=store_url,
            archive_sha256=manifest.archive_sha256,
            model_format=manifest.model_format,
            resources=manifest.resources,
            spool_dir=spool_dir,
        )


def submit(job: MaterializeJob, *, name: str) -> tuple[Any, Any]:
    """Start the task with the model's own resources; return refs to its contents and to its weights.

    The weights are ``(WeightIndex, uint8 array)``. The caller owns both objects; Ray rebuilds them by running the task
    again when the node that holds them is lost.
    """
    contents, weights = _TASK.options(
        name=name,
        num_cpus=job.resources.num_cpus,
        num_gpus=job.resources.num_gpus,
        memory=job.resources.memory_bytes,
    ).remote(job)
    return contents, weights


def _materialize(job: MaterializeJob) -> tuple[ArchiveContents, tuple[WeightIndex, NDArray[np.uint8]]]:
    with work_folder(job.spool_dir) as folder:
        packed = _pack(job, folder)
        weights_bytes = packed.contents.weights_bytes
        # Known only now where the archive was too large to be checked on upload.
        check_capacity(job.resources, weights_bytes=weights_bytes)
        # The mapping outlives the file's name: Ray copies it into the object store from the page cache.
        data = _map_file(packed.data_path, weights_bytes)
    return packed.contents, (packed.index, data)


def _pack(job: MaterializeJob, work_dir: Path) -> PackedArchive:
    from mixpeek_ray.formats.inspect import pack_archive

    store = open_store(job.store_url)
    try:
        stream = store.open_read(archive_key(job.archive_sha256))
    except FileNotFoundError:
        raise MixpeekError("The model's archive is missing from the store: upload the version again.") from None
    with stream:
        return pack_archive(stream, job.model_format, work_dir, expected_sha256=job.archive_sha256)


def _map_file(path: Path, size_bytes: int) -> NDArray[np.uint8]:
    if size_bytes == 0:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r", shape=(size_bytes,)).view(np.ndarray)


_TASK = ray.remote(num_returns=2, max_retries=_MAX_RETRIES, retry_exceptions=[StorageUnavailableError])(_materialize)
