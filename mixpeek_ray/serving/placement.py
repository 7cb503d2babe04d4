"""Where a deployed model is served: in the pool, or by a Serve application of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mixpeek_ray.core.errors import NotServableError
from mixpeek_ray.core.placement import PoolLimit
from mixpeek_ray.core.records import ArchiveContents, DeploymentStatus, ModelManifest, ModelState
from mixpeek_ray.servables.base import OwnApplication, ServableRef
from mixpeek_ray.servables.kinds import check_servable

# Of every application that the platform makes for a model; no other application is ever touched.
APPLICATION_PREFIX = "model-"
# 48 bits: two models whose names read alike still have applications of their own.
_FINGERPRINT_CHARS = 12


def servable_ref(manifest: ModelManifest, contents: ArchiveContents, limit: PoolLimit) -> ServableRef:
    """Return what a deployed model is known by to those who serve it.

    Raises ``NotServableError`` when its archive alone is not enough to answer requests.
    """
    ref = ServableRef(
        namespace_id=manifest.namespace_id,
        model_id=manifest.model_id,
        version=manifest.version,
        kind=contents.kind,
        content=manifest.archive_sha256,
        task_type=manifest.task_type,
        own=None if limit.takes(manifest.resources) else _own_application(manifest),
    )
    check_servable(ref.kind, ref.name)
    return ref


@dataclass(frozen=True, kw_only=True)
class DedicatedModels:
    """What the registry says of models that have an application of their own."""

    # Those that must be served now, by their application's name.
    deployed: Mapping[str, ServableRef]
    # Applications that may go on where they run: of those models, and of the ones that are on their way (back).
    kept: frozenset[str]

    @classmethod
    def of(cls, states: Iterable[ModelState], limit: PoolLimit) -> DedicatedModels:
        """Return the dedicated ones among ``states``; a model that cannot be served at all has no application."""
        deployed: dict[str, ServableRef] = {}
        coming: set[str] = set()
        for state in states:
            if limit.takes(state.manifest.resources):
                continue
            name = _own_application(state.manifest).name
            contents = state.contents or state.manifest.contents
            if state.status is DeploymentStatus.PENDING:
                coming.add(name)
            elif state.status is DeploymentStatus.DEPLOYED and contents is not None:
                try:
                    deployed[name] = servable_ref(state.manifest, contents, limit)
                except NotServableError:
                    continue
        return cls(deployed=deployed, kept=frozenset(coming.union(deployed)))


def _own_application(manifest: ModelManifest) -> OwnApplication:
    """Return an application whose name no other model has, nor the same one with other contents or another request.

    So an application never changes: what is different is another one, and runs before the old one is taken away.
    """
    asked = manifest.resources
    basis = (
        manifest.namespace_id,
        manifest.model_id,
        manifest.archive_sha256,
        manifest.task_type,
        asked.num_cpus,
        asked.num_gpus,
        asked.memory_bytes,
    )
    fingerprint = hashlib.sha256(repr(basis).encode()).hexdigest()[:_FINGERPRINT_CHARS]
    name = f"{APPLICATION_PREFIX}{manifest.namespace_id}-{manifest.model_id}-{fingerprint}"
    return OwnApplication(name=name, resources=asked)
