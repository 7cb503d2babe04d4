"""A servable whose every step into native code is written down before it is taken."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from mixpeek_ray.servables.base import NamedArrays, Parameters, Servable, ServableSpec


class WatchedServable:
    """Computes with another servable, inside what ``watch`` provides."""

    def __init__(self, servable: Servable, watch: Callable[[], AbstractContextManager[None]]) -> None:
        self._servable = servable
        self._watch = watch

    @property
    def spec(self) -> ServableSpec:
        """What it takes and returns."""
        return self._servable.spec

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return the outputs; see ``Servable``."""
        with self._watch():
            return self._servable.compute(inputs, parameters)

    def close(self) -> None:
        """Let go of what computing took outside of this process."""
        with self._watch():
            self._servable.close()
