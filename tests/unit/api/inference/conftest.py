"""The inference routes over tiny models, behind a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from held_up import hold_up
from inference_server import InferenceServer, serving
from local_models import LocalModels, known_models, local_models
from tiny_models import card, tiny_colbert, tiny_model

__all__ = ["card", "hold_up", "known_models", "local_models", "server", "tiny_colbert", "tiny_model"]


@pytest.fixture(scope="module")
def server(known_models) -> Iterator[InferenceServer]:
    """Every family's routes."""
    with serving(LocalModels(models=known_models)) as running:
        yield running
