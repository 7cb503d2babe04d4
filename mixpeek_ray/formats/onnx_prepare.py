"""A model made ready for every worker of a node: ``python -m mixpeek_ray.formats.onnx_prepare``.

A process of its own, because optimizing a model takes private memory that would otherwise stay with the worker that
happened to do it, and because a model may make it crash or never end.

Standard input is a JSON object ``{"places": {tensor: [offset, bytes]}, "threads": int, "optimize": bool}``. The working
directory holds the model without its weights and the file of weights that the places are in. Written there: first
``PLAIN_FILE``, the model whose external data is that file; then, in ``OPTIMIZED_FOLDER``, the model as onnxruntime
optimizes it for this machine's CPU, with the weights as its kernels want them, ready to be mapped. Only an exit status
of 0 says that everything was made.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from mixpeek_ray.core.limits import GIB
from mixpeek_ray.formats.onnx_files import GRAPH_FILE, PLAIN_FILE, WEIGHTS_FILE, optimized_model
from mixpeek_ray.formats.onnx_layout import walk

_OPTIMIZED_WEIGHTS_FILE = "model.weights"
# A page: less is not worth a mapping of its own.
_EXTERNAL_FROM_BYTES = "4096"
# Mapped weights, weights as kernels want them and constants that were folded: 1 of each was seen (334 MB took 590 MB).
_MEMORY_FACTOR = 4
_MEMORY_BYTES = 2 * GIB
_ERRORS_ONLY = 3


def refer(model: ModelProto, places: Mapping[str, tuple[int, int]]) -> None:
    """Make each external tensor of ``model`` refer to the weights file, at the place that its location names."""
    for tensor in walk(model):
        if isinstance(tensor, TensorProto) and tensor.data_location == TensorProto.EXTERNAL:
            offset, size = places[tensor.external_data[0].value]
            del tensor.external_data[:]
            for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))


def _optimize(folder: Path, threads: int) -> None:
    import onnxruntime

    target = optimized_model(folder)
    target.parent.mkdir()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # It warns that what it writes is for this machine, which is the point.
    options.log_severity_level = _ERRORS_ONLY
    options.optimized_model_filepath = str(target)
    for key, value in (
        ("optimized_model_external_initializers_file_name", _OPTIMIZED_WEIGHTS_FILE),
        ("optimized_model_external_initializers_min_size_in_bytes", _EXTERNAL_FROM_BYTES),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{key}", value)
    onnxruntime.InferenceSession(str(folder / PLAIN_FILE), options, providers=["CPUExecutionProvider"])


def _check(folder: Path) -> None:
    """Open what was written: not everything that onnxruntime writes it can read again."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(str(optimized_model(folder)), options, providers=["CPUExecutionProvider"])


def _limit_memory(weights_bytes: int) -> None:
    """Keep a model whose constants unfold to gigabytes from taking the node's memory."""
    if sys.platform == "linux":
        memory = _MEMORY_FACTOR * weights_bytes + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def main() -> None:
    """Prepare the model in the working directory."""
    request = json.load(sys.stdin)
    folder = Path.cwd()
    model = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    refer(model, request["places"])
    (folder / PLAIN_FILE).write_bytes(model.SerializeToString())
    if request["optimize"]:
        _limit_memory((folder / WEIGHTS_FILE).stat().st_size)
        _optimize(folder, request["threads"])
        _check(folder)


if __name__ == "__main__":
    main()
