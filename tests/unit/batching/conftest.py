"""Models for the pool and the engine."""

from __future__ import annotations

from held_up import hold_up
from local_models import known_models, local_models
from tiny_models import card, tiny_colbert, tiny_model

__all__ = ["card", "hold_up", "known_models", "local_models", "tiny_colbert", "tiny_model"]
