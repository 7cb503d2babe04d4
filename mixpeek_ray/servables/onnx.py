"""An ONNX session as a servable: raw tensors by the graph's own names."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixpeek_ray.core.errors import NotServableError, ValidationError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.records import TensorSignature
from mixpeek_ray.formats.onnx_files import session_errors
from mixpeek_ray.servables.base import TEXT, InProcess, NamedArrays, Parameters, ServableSpec, Task
from mixpeek_ray.servables.tensors import DTYPES

_log = get_logger(__name__)

# What onnxruntime calls the element types whose NumPy names are others.
_ELEMENTS = {"float": "float32", "double": "float64", "string": TEXT}


class OnnxServable(InProcess):
    """Computes with one ``onnxruntime.InferenceSession``."""

    def __init__(self, session: Any, *, name: str) -> None:
        """Raises ``NotServableError`` for a graph whose inputs or outputs are no plain tensors."""
        self._session = session
        self._name = name
        self.spec = ServableSpec(
            task=Task.TENSORS,
            inputs=tuple(_signature(node, name) for node in session.get_inputs()),
            outputs=tuple(_signature(node, name) for node in session.get_outputs()),
        )
        self._output_names = [signature.name for signature in self.spec.outputs]

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return what the graph makes of ``inputs``. Raises ``ValidationError`` when it fails on them."""
        del parameters  # none changes what a graph computes
        try:
            found = self._session.run(self._output_names, dict(inputs))
        except session_errors() as error:
            # onnxruntime's own words name nodes and files of the model.
            _log.warning("an ONNX model failed on its inputs (%s)", type(error).__name__)
            raise ValidationError(
                f"Model {self._name!a} fails on these inputs ({type(error).__name__}): compare their shapes and values "
                "with what it was made for.",
                field="inputs",
            ) from None
        return dict(zip(self._output_names, map(np.asarray, found), strict=True))


def _signature(node: Any, model: str) -> TensorSignature:
    element = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = _ELEMENTS.get(element, element)
    if dtype not in DTYPES:
        raise NotServableError(
            f"Model {model!a} has {node.name[:80]!a} of the type {node.type[:80]!a}, and endpoints take plain tensors "
            "only: load it in a plugin."
        )
    shape = tuple(size if isinstance(size, int | str) else None for size in node.shape)
    return TensorSignature(name=node.name, dtype=dtype, shape=shape)
