"""A cluster of three nodes that loses the one which holds a deployed model; see ``test_node_loss``.

    python -m tests.integration.lose_a_node FOLDER

A process of its own: a driver belongs to one cluster. Prints what it found as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks.one_node import NAMESPACE, deploy
from mixpeek_ray.core.settings import Settings
from mixpeek_ray.registry.bootstrap import ensure_registry

# More than Ray sends with a reply: it lies in the object store of the node that made it.
ROWS = 4096
OBJECT_STORE_BYTES = 256 * 2**20


class Reader:
    """A worker that loads the model and goes on viewing it."""

    def load(self, model_id: str) -> str:
        """Return the hash of the weights."""
        from mixpeek_ray.loading.loader import load_namespace_model

        self.weights = load_namespace_model(model_id, namespace_id=NAMESPACE)
        return hashlib.sha256(self.weights["w"].numpy().tobytes()).hexdigest()


def on(node: Any) -> Any:
    """Return a reader on one node and no other."""
    where = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    return ray.remote(Reader).options(num_cpus=0, scheduling_strategy=where).remote()


def node_id_of(actor: Any) -> str:
    """Return which node an actor lives on."""
    return str(ray._private.state.actors(actor._actor_id.hex())["Address"]["NodeID"])


def main() -> None:
    folder = Path(sys.argv[1])
    # The head computes nothing, so that the weights come to be on another node.
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False},
    )
    first = cluster.add_node(num_cpus=2, object_store_memory=OBJECT_STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    settings = Settings(home=folder / "home", spool_dir=folder / "spool")
    registry = ensure_registry(settings)
    weights = torch.from_numpy(np.random.default_rng(7).standard_normal((ROWS, 1024), dtype=np.float32))
    file = folder / "model.pt"
    torch.save({"w": weights}, file)
    # With one node that computes, the weights are made there.
    model_id = deploy(registry, settings, file, "model")
    second = cluster.add_node(num_cpus=2, object_store_memory=OBJECT_STORE_BYTES)
    cluster.wait_for_nodes()
    survivor = on(second)
    cluster.remove_node(first, allow_graceful=False)
    found = ray.get(survivor.load.remote(model_id), timeout=100)
    outcome = {
        "registry_on_head": node_id_of(registry) == cluster.head_node.node_id,
        "weights_equal": found == hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "answers_again": ray.get(survivor.load.remote(model_id), timeout=10) == found,
    }
    print(json.dumps(outcome))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
