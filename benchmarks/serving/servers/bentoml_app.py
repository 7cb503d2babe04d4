"""BentoML's service: adaptive batching in one worker.

bentoml serve benchmarks.serving.servers.bentoml_app:Embed --port PORT
"""

from __future__ import annotations

import bentoml
import numpy as np

from benchmarks.serving.servers.minilm import MAX_BATCH, MiniLM

# What adaptive batching may make a request wait in all, before it is refused: far above what any waits here.
MAX_LATENCY_MS = 60_000


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Embed:
    """Answers ``{"texts": [text]}`` with a list of vectors."""

    def __init__(self) -> None:
        self._model = MiniLM()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=MAX_LATENCY_MS)
    def embed(self, texts: list[str]) -> np.ndarray:
        return self._model.embed(texts)
