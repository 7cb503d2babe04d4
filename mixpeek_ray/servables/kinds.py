"""Which kinds of models answer requests at all; imports nothing that computes."""

from __future__ import annotations

from mixpeek_ray.core.errors import NotServableError
from mixpeek_ray.core.records import ModelKind

# What to do with a model that no endpoint computes.
USE_A_PLUGIN = "load it in a plugin with load_namespace_model, which has the code that the archive lacks"


def check_servable(kind: ModelKind, name: str) -> None:
    """Return if models of ``kind`` can answer requests from their archives alone. Raises ``NotServableError``."""
    if kind is ModelKind.STATE_DICT:
        raise NotServableError(f"Model {name!a} is a state dict, weights without an architecture: {USE_A_PLUGIN}.")
