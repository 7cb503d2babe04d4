"""A plugin: a class that loads a deployed model once and then processes items."""

from __future__ import annotations

import ray
import torch

from engine.models.loader import load_namespace_model


class EmbeddingProjector:
    """Projects 768-dimensional text embeddings to 256 dimensions with the namespace's own weights."""

    def __init__(self) -> None:
        # Views of the node's one copy: this takes milliseconds, and `load_state_dict` copies nothing.
        weights = load_namespace_model("my-embedding-model_1_0_0")
        self.model = torch.nn.Linear(768, 256)
        self.model.load_state_dict(weights)
        self.model.eval()

    def process(self, text_embedding: list[float]) -> list[float]:
        """Return the projection of one embedding."""
        with torch.no_grad():
            projected: list[float] = self.model(torch.tensor(text_embedding)).tolist()
        return projected


if __name__ == "__main__":
    ray.init(log_to_driver=False)
    # Two workers, one copy of the weights between them.
    workers = [ray.remote(EmbeddingProjector).options(num_cpus=0).remote() for _ in range(2)]
    results = ray.get([worker.process.remote([1.0] * 768) for worker in workers])
    print(f"{len(results)} workers projected to {len(results[0])} dimensions")
