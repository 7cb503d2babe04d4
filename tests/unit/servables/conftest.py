"""ONNX graphs as servables, and the tiny text models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from servable_cases import ref
from tiny_models import tiny_model

from mixpeek_ray.core.records import ModelKind
from mixpeek_ray.servables.base import Servable
from mixpeek_ray.servables.build import build_servable

__all__ = ["tiny_model"]


@pytest.fixture
def graph() -> Callable[..., Servable]:
    """Return a function that makes a servable of an ONNX graph: `given` times 2, or over its rows' mean."""

    def make(*, across_rows: bool = False, axes: tuple[int | str, ...] = ("batch", 3)) -> Servable:
        if across_rows:
            nodes = [
                helper.make_node("ReduceMean", ["given"], ["mean"], axes=[0], keepdims=1),
                helper.make_node("Sub", ["given", "mean"], ["result"]),
            ]
        else:
            nodes = [helper.make_node("Mul", ["given", "two"], ["result"])]
        made = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("given", TensorProto.FLOAT, axes)],
            [helper.make_tensor_value_info("result", TensorProto.FLOAT, axes)],
            [numpy_helper.from_array(np.float32(2), "two")],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return build_servable(session, ref(ModelKind.ONNX))

    return make
