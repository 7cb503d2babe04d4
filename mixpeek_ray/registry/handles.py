"""Finding the registry from anywhere in the cluster, and what it answers a loader; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from mixpeek_ray.core.records import ModelKind

REGISTRY_NAME = "ModelRegistry"
# The Ray namespace of every actor of the platform.
RAY_NAMESPACE = "mixpeek"


@dataclass(frozen=True, kw_only=True)
class LoadTicket:
    """Where a loader finds a model. The refs sit in a tuple so that Ray passes them on unresolved."""

    # The archive's hash: equal hashes mean equal bytes.
    content_id: str
    kind: ModelKind
    # Of ``(WeightIndex, uint8 array)``, and of the tuple of ``Companion``.
    refs: tuple[Any, Any]


def find_registry() -> Any:
    """Return a handle of the registry actor. Raises ``ValueError`` when there is none."""
    return ray.get_actor(REGISTRY_NAME, namespace=RAY_NAMESPACE)
