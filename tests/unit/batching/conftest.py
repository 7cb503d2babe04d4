"""Models for the pool and the engine."""

from __future__ import annotations

from held_up import hold_up
from local_models import local_models
from tiny_models import card, tiny_colbert, tiny_model

__all__ = ["card", "hold_up", "local_models", "tiny_colbert", "tiny_model"]
