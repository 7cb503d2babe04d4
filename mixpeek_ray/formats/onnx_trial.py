"""Whether onnxruntime takes a model: its operators, then a session that is opened and thrown away."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto, NodeProto

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.formats.onnx_files import refusal, session_errors
from mixpeek_ray.formats.onnx_layout import walk
from mixpeek_ray.formats.tensors import shown

# Sets of operators that are part of onnxruntime; "" is ai.onnx.
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "com.microsoft"})
# Holds a program compiled for one device, or the path of a file with one.
_COMPILED = ("com.microsoft", "EPContext")
_FATAL_ONLY = 4


def check_operators(model: ModelProto) -> None:
    """Return if every node is an operator of onnxruntime's own, or a function that the model itself defines.

    Raises ``InvalidWeightsError``, naming the operator.
    """
    functions = {(function.domain, function.name) for function in model.functions}
    for node in walk(model):
        if not isinstance(node, NodeProto):
            continue
        operator = (node.domain, node.op_type)
        if operator == _COMPILED:
            raise InvalidWeightsError(
                "The model was compiled for one kind of device (EPContext): upload the ONNX file it was made from."
            )
        if node.domain not in _DOMAINS and operator not in functions:
            raise InvalidWeightsError(
                f"The operator {shown(f'{node.domain}::{node.op_type}')} is not one of onnxruntime's: custom operators "
                "are not supported; export the model with the standard ones."
            )


def check_session(model: bytes, folder: Path) -> None:
    """Return if onnxruntime opens the encoded ``model``, whose external data lies in ``folder``.

    Nothing of the model is executed and no weight is copied; local functions are expanded. Raises
    ``InvalidWeightsError`` with what onnxruntime says.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except session_errors() as error:
        raise refusal(error, folder) from error
