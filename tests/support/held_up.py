"""A model whose batches wait until the test lets them go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mixpeek_ray.families.dense import DenseFamily


class HeldUp:
    """Holds dense models up from their next batch on."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        self._compute = compute
        self.computing, self.let_go = threading.Event(), threading.Event()
        # Texts of each batch, in the order they were computed.
        self.batches: list[int] = []

    def core(self, family: DenseFamily, items: Any) -> Any:
        """Compute a batch once that is allowed."""
        self.computing.set()
        assert self.let_go.wait(30)
        self.batches.append(len(items))
        return self._compute(family, items)


@pytest.fixture
def hold_up(monkeypatch) -> Iterator[Callable[[], HeldUp]]:
    """Return a function that holds dense models up, from the moment it is called until the test ends."""
    held: list[HeldUp] = []

    def hold() -> HeldUp:
        held.append(HeldUp(DenseFamily.core))
        monkeypatch.setattr(DenseFamily, "core", lambda family, items: held[0].core(family, items))
        return held[0]

    yield hold
    for each in held:
        each.let_go.set()
