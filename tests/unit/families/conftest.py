"""Tiny models, for every test of a family."""

from __future__ import annotations

from tiny_models import card, tiny_colbert, tiny_model

__all__ = ["card", "tiny_colbert", "tiny_model"]
