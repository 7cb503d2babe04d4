"""Whether a built-in model can be used now."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mixpeek_ray.catalog.cards import ModelCard


class Availability(enum.StrEnum):
    """Where a built-in model's weights are."""

    # In the cluster's memory.
    LOADED = "loaded"
    # Where its source says: the first call loads them.
    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, kw_only=True)
class BuiltinModel:
    """A card and what is known of its weights."""

    card: ModelCard
    availability: Availability
    # What to do about it when they are unavailable.
    reason: str | None = None
