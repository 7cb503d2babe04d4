"""Copies of matrices in oneDNN's own layout, for models that are busy, as far as a process has memory to spare.

A model whose weights are shared with its node computes over them as they lie. A short text then takes 1.6 times as long
as over a copy in the layout that the CPU's kernels want (MiniLM in float32, one thread: 9.2 instead of 5.9 ms). A
process may have hundreds of such models open, of which few are busy at a time.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence

import torch

from mixpeek_ray.core.limits import MIB

# Copying costs as much as some ten short texts gain.
CALLS_BEFORE_PACKING = 32
# Of one process: six models like MiniLM (42 MB in float32), a tenth of what a hundred of them share with their node.
BUDGET_BYTES = 256 * MIB
# A model that computed within this time keeps its copy, whoever else wants the room.
_KEPT_S = 10.0


class PackedCopies:
    """Who has a copy, within a budget."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds."""
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._owners: weakref.WeakSet[BusyMatrices] = weakref.WeakSet()

    def now(self) -> float:
        """Return the clock's seconds."""
        return self._clock()

    def try_pack(self, owner: BusyMatrices) -> None:
        """Give ``owner`` a copy if there is room, or if models that rest can make some."""
        with self._lock:
            others = sorted((other for other in self._owners if other is not owner), key=lambda other: other.used_at)
            excess = owner.bytes + sum(other.bytes for other in others) - self._budget_bytes
            resting: list[BusyMatrices] = []
            for other in others:
                if excess <= 0 or self._clock() - other.used_at < _KEPT_S:
                    break
                resting.append(other)
                excess -= other.bytes
            if excess > 0:
                return
            for other in resting:
                other.unpack()
                self._owners.discard(other)
            owner.pack()
            self._owners.add(owner)


_copies = PackedCopies()


class BusyMatrices:
    """A model's matrices: as they lie until it has computed for a while, then a copy if there is room for one.

    Called from one thread at a time; whoever got the matrices may use them on when the copy is taken away.
    """

    def __init__(self, matrices: Sequence[torch.Tensor], copies: PackedCopies = _copies) -> None:
        self._shared = self._current = list(matrices)
        self._copies = copies
        self._calls = 0
        self.bytes = sum(matrix.nbytes for matrix in matrices)
        # By the clock of ``copies``.
        self.used_at = copies.now()

    @property
    def are_packed(self) -> bool:
        """Whether there is a copy now."""
        return self._current is not self._shared

    def used(self) -> list[torch.Tensor]:
        """Return the matrices for one forward pass."""
        self.used_at = self._copies.now()
        if not self.are_packed:
            self._calls += 1
            if self._calls % CALLS_BEFORE_PACKING == 0:
                self._copies.try_pack(self)
        return self._current

    def pack(self) -> None:
        """Make the copy; needs ``has_one_dnn()``."""
        self._current = [torch.ops.mkldnn._reorder_linear_weight(matrix, None) for matrix in self._shared]

    def unpack(self) -> None:
        """Let go of the copy."""
        self._current = self._shared
