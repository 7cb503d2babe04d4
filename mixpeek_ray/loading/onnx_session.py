"""Inference sessions whose weights are pages that all workers of a node share.

A session over a model's bytes keeps its own copy of the weights, and most often a second one in the order that its
kernels want. Here a model is optimized and its weights are reordered once a node, written to files, and every session
maps those: it starts faster than an ordinary one, runs as fast, and what it holds in private is a small part.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpeek_ray.core.errors import InvalidWeightsError, ValidationError
from mixpeek_ray.core.limits import GIB
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.core.settings import get_settings
from mixpeek_ray.formats.base import Companion
from mixpeek_ray.formats.disk import disk_full_as_error
from mixpeek_ray.formats.onnx_files import (
    GRAPH_FILE,
    OPTIMIZED_FOLDER,
    PLAIN_FILE,
    WEIGHTS_FILE,
    optimized_model,
    refusal,
    session_errors,
)
from mixpeek_ray.formats.packed import WeightIndex
from mixpeek_ray.loading.node_files import NodeFolder, node_folder

if TYPE_CHECKING:
    from typing_extensions import Buffer

_log = get_logger(__name__)
_CPU = ("CPUExecutionProvider",)
# Optimizing and writing: 3 s for 334 MB on 2 cores; a slow disk and a busy machine get thirty times that.
_PREPARE_S = 60.0
_PREPARE_S_PER_GIB = 240.0
# Changes when the files of a prepared model do.
_FILES_VERSION = "1"
# What open sessions map: the next one of the node finds the same files for as long as one of them is open.
_folders: weakref.WeakKeyDictionary[Any, NodeFolder] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class _Job:
    index: WeightIndex
    data: memoryview
    graph: bytes
    threads: int
    # Only what the CPU's kernels want can be written down; other devices hold weights in their own memory.
    optimize: bool


def open_onnx(
    index: WeightIndex,
    data: Buffer,
    companions: Sequence[Companion],
    key: str,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
) -> Any:
    """Return an ``onnxruntime.InferenceSession`` of a packed ONNX model.

    ``data`` is the packed buffer (uint8), needed during the call only; ``key`` the hash of the model's content. The
    first call of a node prepares the model's files, which takes as long as three to nine ordinary loads and up to three
    times the weights on the disk, two of which stay; other processes wait for it. ``providers`` defaults to the setting
    ``MIXPEEK_ONNX_PROVIDERS``, ``threads`` (of one operator; 0 leaves it to onnxruntime) to ``MIXPEEK_ONNX_THREADS``.

    Raises ``ValidationError`` for a provider that this onnxruntime does not have, ``InvalidWeightsError`` when it does
    not open the model, ``DiskFullError``.
    """
    import onnxruntime

    settings = get_settings()
    chosen = tuple(settings.onnx_provider_names if providers is None else providers)
    _check_providers(chosen)
    job = _Job(
        index=index,
        data=memoryview(data),
        graph=next(companion.content for companion in companions if companion.path == GRAPH_FILE),
        threads=settings.onnx_intra_op_threads if threads is None else threads,
        optimize=chosen == _CPU,
    )
    held = node_folder(_node_key(key, chosen), lambda partial: _prepare(job, partial))
    folder = held.path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    model = optimized_model(folder)
    if model.exists():
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        model = folder / PLAIN_FILE
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=list(chosen))
    except session_errors() as error:
        raise refusal(error, folder) from error
    _folders[session] = held
    _return_freed_memory()
    return session


def _return_freed_memory() -> None:
    """Give back to the system what opening a session freed; changes nothing where the allocator is not glibc's.

    onnxruntime reorders each matrix even so, to find the ready one by the hash of what comes out, and frees its own.
    Such aligned blocks glibc 2.36 does not reuse for one another: up to five of eight matrices stayed. What the last
    one took still stays with a thread that is not the main one, when it is under 32 MiB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _check_providers(providers: Sequence[str]) -> None:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    missing = [name for name in providers if name not in available]
    if missing or not providers:
        raise ValidationError(
            f"This onnxruntime has no provider {', '.join(map(ascii, missing)) or 'by no name'}: set "
            f"MIXPEEK_ONNX_PROVIDERS to some of {', '.join(available)}, or install the build that has it.",
            field="MIXPEEK_ONNX_PROVIDERS",
        )


def _node_key(key: str, providers: Sequence[str]) -> str:
    import onnxruntime

    basis = (_FILES_VERSION, onnxruntime.__version__, _cpu_features(), *providers)
    return f"{key}-onnx-{hashlib.sha256(json.dumps(basis).encode()).hexdigest()[:16]}"


@cache
def _cpu_features() -> str:
    """Return what the order of prepared weights depends on: the processor's kind and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )


def _prepare(job: _Job, folder: Path) -> None:
    """Fill ``folder`` with an optimized model, or with the plain one where that does not work."""
    with disk_full_as_error():
        (folder / GRAPH_FILE).write_bytes(job.graph)
        with (folder / WEIGHTS_FILE).open("wb") as file:
            file.write(job.data[: job.index.total_bytes])
    problem = _run(job, folder)
    (folder / GRAPH_FILE).unlink()
    if problem is None and job.optimize:
        (folder / WEIGHTS_FILE).unlink()
        (folder / PLAIN_FILE).unlink()
        return
    shutil.rmtree(folder / OPTIMIZED_FOLDER, ignore_errors=True)
    if not (folder / PLAIN_FILE).exists():
        raise InvalidWeightsError("The ONNX model could not be made ready on this node: deploy it again.")
    if problem is not None:
        _log.warning("an ONNX model could not be optimized once for the node (%s); each worker does it", problem)


def _run(job: _Job, folder: Path) -> str | None:
    """Run the preparing process; return what went wrong, or None."""
    request = {"places": _places(job.index), "threads": job.threads, "optimize": job.optimize}
    seconds = _PREPARE_S + _PREPARE_S_PER_GIB * job.index.total_bytes / GIB
    try:
        # -P: never import from the working directory.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mixpeek_ray.formats.onnx_prepare"],
            input=json.dumps(request).encode(), cwd=folder, timeout=seconds, capture_output=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it took over {seconds:.0f} s"
    return None if done.returncode == 0 else f"exit status {done.returncode}"


def _places(index: WeightIndex) -> dict[str, tuple[int, int]]:
    """Return each tensor's first byte in the packed buffer and how many it takes."""
    # Every tensor of an ONNX model is the whole of its storage.
    return {
        name: (index.storage_starts[storage], index.storage_sizes[storage])
        for name, storage in zip(index.names, index.storage_ids, strict=True)
    }
