"""Whether named arrays are what a model takes, said before it sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mixpeek_ray.core import limits
from mixpeek_ray.core.errors import InputTooLongError, ValidationError
from mixpeek_ray.core.records import TensorSignature
from mixpeek_ray.servables.base import TEXT, NamedArrays, ServableSpec, Task

_NUMBERS = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
# What NumPy computes each of a signature's dtypes as.
DTYPES: dict[str, np.dtype[Any]] = {TEXT: np.dtype(object), **{name: np.dtype(name) for name in _NUMBERS}}


def check_inputs(spec: ServableSpec, inputs: NamedArrays) -> None:
    """Return if ``inputs`` are what the model takes. Raises ``ValidationError`` naming the input otherwise."""
    known = [signature.name for signature in spec.inputs]
    for name in inputs:
        if name not in known:
            raise refused(name, f"is none of the model's inputs: it takes {', '.join(map(ascii, known))}")
    for signature in spec.inputs:
        if signature.name not in inputs:
            raise refused(signature.name, "is missing: send every input of the model")
        if spec.is_typed:
            _check(signature, inputs[signature.name])
        elif inputs[signature.name].dtype == DTYPES[TEXT]:
            raise refused(signature.name, "holds texts, and the model takes numbers")
    if not spec.is_typed:
        return
    _check_named_axes(spec, inputs)
    if spec.task is not Task.TENSORS:
        _check_texts(inputs)


def refused(name: str, problem: str, **details: Any) -> ValidationError:
    """Return the error for one input of a request."""
    return ValidationError(f"Input {name[:80]!a} {problem}.", field=f"inputs.{ascii(name[:80])[1:-1]}", **details)


def _check(signature: TensorSignature, given: npt.NDArray[Any]) -> None:
    name = signature.name
    if given.dtype != DTYPES[signature.dtype]:
        raise refused(name, f"has the dtype {given.dtype.name}, and the model takes {signature.dtype}")
    if len(signature.shape) != given.ndim:
        raise refused(
            name, f"has {given.ndim} axes, and the model takes {len(signature.shape)}: {_shown(signature.shape)}"
        )
    for size, wanted in zip(given.shape, signature.shape, strict=True):
        if isinstance(wanted, int) and size != wanted:
            raise refused(name, f"has the shape {_shown(given.shape)}, and the model takes {_shown(signature.shape)}")
    if not given.size:
        raise refused(name, "is empty: send at least one element")


def _check_named_axes(spec: ServableSpec, inputs: NamedArrays) -> None:
    """One name stands for one size, wherever it is used."""
    sizes: dict[str, int] = {}
    for signature in spec.inputs:
        for axis, size in zip(signature.shape, inputs[signature.name].shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise refused(signature.name, f"has {size} for {axis[:80]!a}, and another input {sizes[axis]}")


def _check_texts(inputs: NamedArrays) -> None:
    for name, given in inputs.items():
        if len(given) > limits.MAX_SERVABLE_TEXTS:
            raise refused(
                name,
                f"holds {len(given)} texts, and a request may {limits.MAX_SERVABLE_TEXTS}: divide them",
                limit=limits.MAX_SERVABLE_TEXTS,
            )
        for index, text in enumerate(given):
            if len(text) > limits.MAX_TEXT_CHARS:
                raise InputTooLongError(
                    f"A text is longer than {limits.MAX_TEXT_CHARS} characters, and no model reads that much: "
                    "shorten it.",
                    field=f"inputs.{name}",
                    index=index,
                    limit_chars=limits.MAX_TEXT_CHARS,
                )


def _shown(shape: tuple[int | str | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else ascii(size).strip(chr(39))[:80] for size in shape)}]"
