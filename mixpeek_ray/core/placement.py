"""Which custom models the shared pool serves, and which ask for more than one of its replicas has to give."""

from __future__ import annotations

from dataclasses import dataclass

from mixpeek_ray.core.records import ResourceRequest


@dataclass(frozen=True, kw_only=True)
class PoolLimit:
    """The largest request of a model that a replica of the pool serves beside others."""

    num_cpus: float
    memory_bytes: int

    def takes(self, request: ResourceRequest) -> bool:
        """Tell whether the pool serves a model with this request; no replica of the pool has a GPU."""
        return request.num_gpus == 0 and request.num_cpus <= self.num_cpus and request.memory_bytes <= self.memory_bytes
