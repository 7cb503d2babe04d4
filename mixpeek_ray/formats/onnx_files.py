"""What the files of an ONNX model are called on their way to a session, and how its refusals are told.

Imports nothing: a worker that opens a prepared model needs no ONNX reader.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mixpeek_ray.core.errors import InvalidWeightsError

# The companion of packed weights: the model, whose larger tensors are external, each at the location of its own name.
GRAPH_FILE = "model.onnx"
# A prepared folder has the packed weights and the model that refers to them, …
WEIGHTS_FILE = "weights"
PLAIN_FILE = "plain.onnx"
# … or, in a folder of its own, the optimized model with weights in the order that kernels want.
OPTIMIZED_FOLDER = "optimized"
_MAX_REASON_CHARACTERS = 300


def optimized_model(folder: Path) -> Path:
    """Return where the optimized model lies in a prepared folder."""
    return folder / OPTIMIZED_FOLDER / GRAPH_FILE


def session_errors() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises when it cannot open a model, each kind a class of its own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError)


def refusal(error: Exception, folder: Path) -> InvalidWeightsError:
    """Return an answer with onnxruntime's own words, without paths of this machine and places in its source."""
    # An error inside another repeats the prefix: the innermost says what is wrong.
    text = re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", str(error).replace(str(folder), ""))[-1]
    if "onnxruntime_src" in text:
        text = text.rpartition(") ")[2]
    text = ascii(" ".join(text.split())[:_MAX_REASON_CHARACTERS])[1:-1]
    return InvalidWeightsError(f"onnxruntime {_version()} does not open the model ({text}): export it again.")


def _version() -> Any:
    import onnxruntime

    return onnxruntime.__version__
