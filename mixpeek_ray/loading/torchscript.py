"""A TorchScript program over the node's one copy of its weights."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import TYPE_CHECKING

from mixpeek_ray.formats.base import Companion
from mixpeek_ray.formats.torchscript import PROGRAM_ID, storage_key

if TYPE_CHECKING:
    import torch


def open_torchscript(
    weights: OrderedDict[str, torch.Tensor], companions: tuple[Companion, ...]
) -> torch.jit.ScriptModule:
    """Return the program as it was saved, in its mode of then, on the CPU; its tensors share memory with ``weights``.

    Parameters, buffers, other tensor attributes and constants all do. Runs the program's ``__setstate__`` methods,
    where it has any: call this in no process that another namespace uses. Raises ``RuntimeError`` when torch cannot
    compile the program.
    """
    import torch
    from torch.jit._recursive import wrap_cpp_module

    (program,) = companions
    storages = torch._C.DeserializationStorageContext()
    for name, tensor in weights.items():
        key = storage_key(name)
        if tensor.untyped_storage().nbytes() and not storages.has_storage(key):
            storages.add_storage(key, tensor)
    # The loader of torch.package: torch.jit.load, with the same program, has no place to hand storages in.
    module = torch._C._import_ir_module_from_package(
        torch._C.CompilationUnit(),
        torch._C.PyTorchFileReader(io.BytesIO(program.content)),
        storages,
        torch.device("cpu"),
        PROGRAM_ID,
    )
    wrapped: torch.jit.ScriptModule = wrap_cpp_module(module)  # type: ignore[no-untyped-call]
    return wrapped
