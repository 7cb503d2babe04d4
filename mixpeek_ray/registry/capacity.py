"""Whether the cluster could ever hold a model, and whether it has room for one now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from ray._private.state import available_resources_per_node

from mixpeek_ray.core.errors import InsufficientCapacityError
from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.records import ResourceRequest


def check_capacity(resources: ResourceRequest, *, weights_bytes: int) -> None:
    """Return if some live node could meet the request when idle; raise ``InsufficientCapacityError`` otherwise.

    Blocks on the cluster's control store.
    """
    wanted = {**_wanted(resources), "object_store_memory": float(weights_bytes)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    missing = _missing(wanted, nodes, "on the largest node")
    if missing is not None:
        raise InsufficientCapacityError(
            f"No node can hold this model ({missing}): upload it with smaller requests, or add a larger node.",
            retryable=False,
        )


def missing_now(resources: ResourceRequest) -> str | None:
    """Return what no live node has free of the request, in words; None where one has room.

    Blocks on the cluster's control store.
    """
    return _missing(_wanted(resources), list(available_resources_per_node().values()), "free")


def _wanted(resources: ResourceRequest) -> dict[str, float]:
    return {
        "CPU": resources.num_cpus,
        "GPU": float(resources.num_gpus),
        "memory": float(resources.memory_bytes),
    }


def _missing(wanted: Mapping[str, float], nodes: Sequence[Mapping[str, float]], where: str) -> str | None:
    if any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        return None
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in wanted}
    missing = [
        f"{name}: {_shown(name, wanted[name])} needed, {_shown(name, most[name])} {where}"
        for name in wanted
        if wanted[name] > most[name]
    ]
    return "; ".join(missing) or "no node has all of it together"


def _shown(name: str, amount: float) -> str:
    return f"{amount / GIB:.3g} GiB" if name.endswith("memory") else f"{amount:g}"
