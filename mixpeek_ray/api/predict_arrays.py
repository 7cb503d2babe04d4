"""From JSON to arrays of a model's dtypes, exactly: nothing is rounded, cut or read as something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mixpeek_ray.core.errors import ValidationError
from mixpeek_ray.servables.base import TEXT
from mixpeek_ray.servables.tensors import DTYPES, refused

# Which kinds of JSON values each kind of dtype takes: b(ool), i(nteger), u(nsigned), f(loat).
_TAKES = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
_INFERRED = {"b": "bool", "i": "int64", "f": "float32"}
_KINDS = {"b": "booleans", "i": "whole numbers", "u": "whole numbers", "f": "numbers", "O": "texts"}


def array_of(name: str, dtype: str, value: Any, shape: tuple[int, ...] | None = None) -> npt.NDArray[Any]:
    """Return a JSON value, nested lists or one scalar, as an array; ``shape`` is given where the value is flat.

    Raises ``ValidationError`` naming the input for values of another kind, lists of unequal lengths, numbers that the
    dtype does not hold, no elements at all, and a shape that they do not fill.
    """
    array = _texts(name, value) if dtype == TEXT else _numbers(name, DTYPES[dtype], value)
    if not array.size:
        raise refused(name, "is empty: send at least one element")
    return array if shape is None else reshaped(name, array, shape)


def inferred_dtype(name: str, value: Any) -> str:
    """Return what a program that does not tell its dtypes gets: float32, int64 or bool, as torch would make of them."""
    try:
        kind = np.array(value).dtype.kind
    except (ValueError, OverflowError):
        raise refused(name, "has lists of unequal lengths, or a number that no dtype holds") from None
    if kind not in _INFERRED:
        raise refused(name, "holds something else than numbers")
    return _INFERRED[kind]


def reshaped(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return ``array`` in ``shape``. Raises ``ValidationError`` when it has another number of elements."""
    needed = 1
    for size in shape:
        needed *= size
    if min(shape, default=1) < 0 or needed != array.size:
        raise refused(name, f"has {array.size} elements, and its shape stands for {needed if needed > 0 else 'none'}")
    return array.reshape(shape)


def _numbers(name: str, dtype: np.dtype[Any], value: Any) -> npt.NDArray[Any]:
    try:
        found = np.array(value)
    except (ValueError, OverflowError):
        raise refused(name, "has lists of unequal lengths, or a number that no dtype holds") from None
    if found.size and found.dtype.kind not in _TAKES[dtype.kind]:
        raise refused(name, f"holds something else than {_KINDS[dtype.kind]}, which {dtype.name} takes")
    if dtype.kind in "iu" and found.size:
        held = np.iinfo(dtype)
        if int(found.min()) < held.min or int(found.max()) > held.max:
            raise refused(name, f"has a number outside of {held.min} to {held.max}, which {dtype.name} holds")
    with np.errstate(over="ignore"):
        array = found.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise refused(name, f"has a number too large for {dtype.name}, or one that is none")
    return array


def _texts(name: str, value: Any) -> npt.NDArray[Any]:
    array = np.empty(_shape(name, value), dtype=object)
    flat = array.reshape(-1)
    for index, text in enumerate(_leaves(value)):
        if not isinstance(text, str):
            raise refused(name, "holds something else than texts")
        flat[index] = text
    return array


def _shape(name: str, value: Any) -> tuple[int, ...]:
    """Return the shape of nested lists. Raises ``ValidationError`` where their lengths are unequal."""
    if not isinstance(value, list):
        return ()
    inner = {_shape(name, item) for item in value}
    if len(inner) > 1:
        raise refused(name, "has lists of unequal lengths")
    return (len(value), *(inner.pop() if inner else ()))


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


def parse_shape(name: str, value: Any) -> tuple[int, ...]:
    """Return a shape as it was sent. Raises ``ValidationError`` unless it is a list of sizes."""
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise ValidationError(f"The shape of {name[:80]!a} is no list of sizes: send such as [2, 3].", field="shape")
    return tuple(value)
