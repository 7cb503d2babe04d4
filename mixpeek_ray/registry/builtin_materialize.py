"""The task that brings a built-in model's weights into the object store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.core.errors import ArchiveRefusedError
from mixpeek_ray.registry.builtin_files import needed_files
from mixpeek_ray.registry.builtin_sources import fetched, unavailable
from mixpeek_ray.registry.capacity import check_capacity
from mixpeek_ray.registry.spool import work_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mixpeek_ray.families.pack import PackedModel
    from mixpeek_ray.formats.base import Companion
    from mixpeek_ray.formats.packed import WeightIndex

# As for deploys: a worker that dies is replaced this often before the load fails.
_MAX_RETRIES = 3


@dataclass(frozen=True, kw_only=True)
class BuiltinJob:
    """What the task needs to know; small, because lineage keeps it for as long as the weights live."""

    card: ModelCard
    models_dir: str | None
    spool_dir: str | None
    # Ray's id of the node whose directories and hub cache count: the registry's own.
    node_id: str


@dataclass(frozen=True, kw_only=True)
class BuiltinContents:
    """What the task found."""

    # Hash of weights and companions: equal hashes mean equal bytes.
    content_id: str
    weights_bytes: int


@dataclass(frozen=True, kw_only=True)
class BuiltinRefs:
    """What the task returns, owned by its submitter; Ray runs the task again when they are lost."""

    # Of ``BuiltinContents``.
    contents: Any
    # Of ``(WeightIndex, uint8 array)``.
    weights: Any
    # Of a tuple of ``Companion``.
    companions: Any


def submit(job: BuiltinJob) -> BuiltinRefs:
    """Start the task. It reserves nothing: the replica that waits for it holds the model's CPUs and memory already.

    On a full node a reservation of its own would never be met, and the replica wait for ever.
    """
    contents, weights, companions = _TASK.options(
        name=f"materialize:{job.card.name}",
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(job.node_id, soft=False),
    ).remote(job)
    return BuiltinRefs(contents=contents, weights=weights, companions=companions)


def _materialize(
    job: BuiltinJob,
) -> tuple[BuiltinContents, tuple[WeightIndex, NDArray[np.uint8]], tuple[Companion, ...]]:
    with work_folder(job.spool_dir) as work_dir:
        packed = _pack(job, work_dir)
        weights_bytes = packed.index.total_bytes
        check_capacity(job.card.resources, weights_bytes=weights_bytes)
        contents = BuiltinContents(content_id=packed.content_id(), weights_bytes=weights_bytes)
    # The mapping outlives the file's name: Ray copies it into the object store from the page cache.
    return contents, (packed.index, packed.data), packed.companions


def _pack(job: BuiltinJob, work_dir: Path) -> PackedModel:
    from mixpeek_ray.families.pack import packed_directory

    folder = fetched(job.card, Path(job.models_dir) if job.models_dir is not None else None, work_dir)
    try:
        return packed_directory(job.card, folder, needed_files(folder), work_dir / "packed")
    except ArchiveRefusedError as error:
        raise unavailable(job.card, f"they cannot be used ({error.message.removesuffix('.')})") from None
    except OSError as error:
        raise unavailable(job.card, f"its files cannot be read ({type(error).__name__})") from None


_TASK = ray.remote(num_returns=3, max_retries=_MAX_RETRIES)(_materialize)
