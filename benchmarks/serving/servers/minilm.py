"""What every peer's server computes: sentence-transformers on one thread, in batches of the same bounds.

Imports what all environments have, nothing of this platform.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# The largest batch: what sentence-transformers itself takes by default.
MAX_BATCH = 32
# How long a server waits for a batch to fill, in seconds: long enough for what the client sends at once to arrive,
# short beside the 5 ms that one sentence takes.
MAX_WAIT_S = 0.002
# The environment variable with the model's directory.
MODEL_VARIABLE = "BENCHMARK_MODEL"


class MiniLM:
    """The model that ``MODEL_VARIABLE`` names."""

    def __init__(self) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        # Each process of a server may set its own: a variable alone does not bind them all.
        torch.set_num_threads(1)
        self._model = SentenceTransformer(os.environ[MODEL_VARIABLE], device="cpu")

    def embed(self, texts: Sequence[str]) -> Any:
        """Return float32 [texts, 384], L2-normalised, in their order."""
        return self._model.encode(list(texts), batch_size=MAX_BATCH, show_progress_bar=False)
