"""Rows of several requests as one batch, and the batch's outcome as theirs again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from mixpeek_ray.servables.base import NamedArrays, Parameters

# Kernels choose other orders of summation for other numbers of rows: float32 sums differ by this much, and float16's
# by a hundred times as much.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5


@dataclass(eq=False, kw_only=True)
class Work:
    """A request's inputs, and how many of their rows went into batches."""

    inputs: NamedArrays
    parameters: Parameters
    rows: int
    taken: int = 0

    def fits(self, other: Work) -> bool:
        """Tell whether rows of both may be in one batch."""
        return self.parameters == other.parameters and all(
            array.shape[1:] == other.inputs[name].shape[1:] for name, array in self.inputs.items()
        )


WorkT = TypeVar("WorkT", bound=Work)


@dataclass(frozen=True, eq=False, kw_only=True)
class Part(Generic[WorkT]):
    """Rows ``start`` to ``stop`` of a request."""

    work: WorkT
    start: int
    stop: int

    @property
    def inputs(self) -> NamedArrays:
        """The inputs of these rows: the request's own arrays where it is all of them."""
        if self.stop - self.start == self.work.rows:
            return self.work.inputs
        return {name: array[self.start : self.stop] for name, array in self.work.inputs.items()}


def joined(parts: Sequence[Part[WorkT]]) -> NamedArrays:
    """Return the rows of all ``parts``, one after the other."""
    if len(parts) == 1:
        return parts[0].inputs
    inputs = [part.inputs for part in parts]
    return {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}


def divided(outputs: NamedArrays, parts: Sequence[Part[WorkT]]) -> Iterator[NamedArrays]:
    """Yield each part's rows of ``outputs``, copied: one caller's answer must not keep the others' in memory."""
    start = 0
    for part in parts:
        stop = start + part.stop - part.start
        yield {name: array[start:stop].copy() for name, array in outputs.items()}
        start = stop


def in_order(outcomes: Sequence[NamedArrays]) -> NamedArrays:
    """Return the outputs of a request whose rows were computed in several batches."""
    if len(outcomes) == 1:
        return outcomes[0]
    return {name: np.concatenate([outcome[name] for outcome in outcomes]) for name in outcomes[0]}


def is_whole(outputs: NamedArrays, parts: Sequence[Part[WorkT]]) -> bool:
    """Tell whether ``outputs`` have a row for each of the batch."""
    rows = sum(part.stop - part.start for part in parts)
    return all(array.ndim and len(array) == rows for array in outputs.values())


def are_close(found: NamedArrays, expected: NamedArrays) -> bool:
    """Tell whether two outcomes are the same but for rounding."""
    return all(_is_close(found[name], expected[name]) for name in expected)


def _is_close(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    if found.shape != expected.shape:
        return False
    if expected.dtype.kind != "f":
        return bool((found == expected).all())
    looseness = 100 if expected.dtype.itemsize == 2 else 1  # float16
    return bool(np.allclose(found, expected, rtol=looseness * _RELATIVE, atol=looseness * _ABSOLUTE, equal_nan=True))
