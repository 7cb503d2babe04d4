"""ONNX graphs that do what a test asks of them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.integration.models import tar_gz

_OPSET, _IR_VERSION = 17, 10


def archive_of_graph(graph: onnx.GraphProto) -> bytes:
    """Return the ``.tar.gz`` of a model of this graph, checked."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return tar_gz({"model.onnx": model.SerializeToString()})


def repeater() -> bytes:
    """Return a model that returns ``matrix`` after multiplying it ``times`` times: as slow as it is asked to be."""
    square = ["n", "n"]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going_on"], ["goes_on"]),
            helper.make_node("MatMul", ["before", "before"], ["product"]),
            helper.make_node("Sub", ["product", "product"], ["nothing"]),
            helper.make_node("Add", ["before", "nothing"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, square),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, square),
        ],
    )
    return archive_of_graph(
        helper.make_graph(
            [helper.make_node("Loop", ["times", "", "matrix"], ["result"], body=body)],
            "repeater",
            [
                helper.make_tensor_value_info("times", TensorProto.INT64, []),
                helper.make_tensor_value_info("matrix", TensorProto.FLOAT, square),
            ],
            [helper.make_tensor_value_info("result", TensorProto.FLOAT, square)],
        )
    )


def multiplier(width: int, seed: int) -> bytes:
    """Return a model that multiplies ``rows`` by a square matrix of its own, another one for each ``seed``."""
    weight = np.random.default_rng(seed).standard_normal((width, width), dtype=np.float32)
    return archive_of_graph(
        helper.make_graph(
            [helper.make_node("MatMul", ["rows", "weight"], ["result"])],
            "multiplier",
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", width])],
            [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["n", width])],
            [numpy_helper.from_array(weight, "weight")],
        )
    )


def divider() -> bytes:
    """Return a model that returns ``number`` by ``divisor``; the lowest number by -1 crashes it natively.

    onnxruntime looks for zeros before it divides, and no further: what x86 cannot represent is a SIGFPE.
    """
    shape = ["n"]
    return archive_of_graph(
        helper.make_graph(
            [helper.make_node("Div", ["number", "divisor"], ["result"])],
            "divider",
            [
                helper.make_tensor_value_info("number", TensorProto.INT64, shape),
                helper.make_tensor_value_info("divisor", TensorProto.INT64, shape),
            ],
            [helper.make_tensor_value_info("result", TensorProto.INT64, shape)],
        )
    )
