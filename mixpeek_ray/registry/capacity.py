"""Whether the cluster could ever hold a model."""

from __future__ import annotations

import ray

from mixpeek_ray.core.errors import InsufficientCapacityError
from mixpeek_ray.core.records import ResourceRequest


def check_capacity(resources: ResourceRequest, *, weights_bytes: int) -> None:
    """Return if some live node could meet the request when idle; raise ``InsufficientCapacityError`` otherwise.

    Blocks on the cluster's control store.
    """
    wanted = {
        "CPU": resources.num_cpus,
        "GPU": float(resources.num_gpus),
        "memory": float(resources.memory_bytes),
        "object_store_memory": float(weights_bytes),
    }
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        return
    largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in wanted}
    missing = [
        f"{name}: {wanted[name]:g} needed, {largest[name]:g} on the largest node"
        for name in wanted
        if wanted[name] > largest[name]
    ]
    raise InsufficientCapacityError(
        f"No node can hold this model ({'; '.join(missing) or 'no node has all of it together'}): "
        "upload it with smaller requests, or add a larger node.",
        retryable=False,
    )
