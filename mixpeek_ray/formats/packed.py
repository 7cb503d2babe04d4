"""Packed weights: one flat buffer that holds every storage, and the small index that turns it back into tensors.

The buffer is storages laid end to end, each beginning on a 64-byte boundary; the index is columns of plain values, so
that it unpickles in well under a millisecond however large the weights are. A view shares the buffer's memory: it
costs microseconds a tensor and no bytes.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.disk import disk_full_as_error
from mixpeek_ray.formats.metadata import AssigningMetadata, module_versions_of

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

# A cache line, and what vectorised kernels and torch's own files align to.
ALIGNMENT_BYTES = 64
# Large enough that system calls cost nothing, small enough that few source pages are resident at a time.
_WRITE_BYTES = 64 * MIB

# Every dtype whose elements are whole bytes. Quantized dtypes need scales that a plain buffer cannot hold.
DTYPE_NAMES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
    "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WeightIndex:
    """Where each tensor lies in a packed buffer; one column a property, one row a tensor in the checkpoint's order."""

    names: tuple[str, ...]
    # Names from ``DTYPE_NAMES``.
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    # In elements; None where the tensor is C-contiguous and fills a storage that no other tensor uses.
    strides: tuple[tuple[int, ...] | None, ...]
    # Row of each tensor's storage in the two columns below.
    storage_ids: tuple[int, ...]
    # First element of each tensor in its storage, counted in elements.
    storage_offsets: tuple[int, ...]
    # Each storage's first byte in the buffer (a multiple of ``ALIGNMENT_BYTES``), and its length in bytes.
    storage_starts: tuple[int, ...]
    storage_sizes: tuple[int, ...]
    # Length of the buffer in bytes.
    total_bytes: int
    # The checkpoint's own ``_metadata``: (module prefix, version) pairs.
    module_versions: tuple[tuple[str, int], ...]


@cache
def dtype_table() -> dict[str, torch.dtype]:
    """Return every supported dtype by name."""
    import torch

    return {name: getattr(torch, name) for name in DTYPE_NAMES}


@cache
def _carriers() -> dict[str, tuple[np.dtype[Any], torch.dtype | None]]:
    """Return, by name, the NumPy dtype that carries each dtype's bytes, and what to view it as where it differs."""
    stand_ins = {1: "uint8", 2: "int16", 4: "int32"}
    return {
        name: (np.dtype(name), None) if hasattr(np, name) else (np.dtype(stand_ins[dtype.itemsize]), dtype)
        for name, dtype in dtype_table().items()
    }


def plan(state_dict: Mapping[str, torch.Tensor]) -> WeightIndex:
    """Return the index that packing ``state_dict`` would give; reads no tensor data.

    Expects dense CPU tensors of a supported dtype (``tensors.check_state_dict`` holds them to that). Tensors that
    share a storage share it in the buffer too.
    """
    return _lay_out(_plain_tensors(state_dict), module_versions_of(getattr(state_dict, "_metadata", None)))


def pack(state_dict: Mapping[str, torch.Tensor], path: Path) -> WeightIndex:
    """Write the tensors of ``state_dict`` to a new file at ``path`` and return its index.

    Takes no private memory beyond what the source tensors hold. Raises ``FileExistsError`` when ``path`` exists and
    ``DiskFullError`` when the disk fills up; ``path`` is removed again on any failure.
    """
    tensors = _plain_tensors(state_dict)
    index = _lay_out(tensors, module_versions_of(getattr(state_dict, "_metadata", None)))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with disk_full_as_error():
            os.ftruncate(descriptor, index.total_bytes)
            for start, storage in zip(index.storage_starts, _storages(tensors), strict=True):
                _write_at(descriptor, storage, start)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return index


def view(index: WeightIndex, buffer: Buffer) -> OrderedDict[str, torch.Tensor]:
    """Return the tensors as views of ``buffer``, which they keep alive; no byte is copied.

    ``buffer`` is any writable buffer of at least ``index.total_bytes`` bytes; a write to a tensor is a write to it.
    The mapping's ``_metadata`` makes a plain ``module.load_state_dict(weights)`` take the views as they are.
    """
    import torch

    # By way of NumPy a tensor costs half of what torch.frombuffer and Tensor.view take (0.9 against 2.8 us).
    carriers, array, from_numpy = _carriers(), np.ndarray, torch.from_numpy
    # Torch and ndarray() keep the buffer's object alive, but only a memoryview keeps it from being closed or resized.
    memory = np.asarray(memoryview(buffer).cast("B"))
    starts, sizes = index.storage_starts, index.storage_sizes
    shared: dict[int, torch.UntypedStorage] = {}
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()
    rows = zip(
        index.names, index.dtypes, index.shapes, index.strides, index.storage_ids, index.storage_offsets, strict=True
    )
    for name, dtype_name, shape, stride, storage_id, offset in rows:
        if stride is None:
            carrier, dtype = carriers[dtype_name]
            tensor = from_numpy(array(shape, carrier, memory, starts[storage_id]))
            weights[name] = tensor if dtype is None else tensor.view(dtype)
            continue
        storage = shared.get(storage_id)
        if storage is None:
            storage = shared[storage_id] = _view_storage(memory, starts[storage_id], sizes[storage_id])
        weights[name] = torch.empty(0, dtype=dtype_table()[dtype_name]).set_(storage, offset, shape, stride)
    weights._metadata = AssigningMetadata(index.module_versions)  # type: ignore[attr-defined]
    return weights


def _view_storage(memory: np.ndarray[Any, np.dtype[np.uint8]], start: int, size: int) -> torch.UntypedStorage:
    import torch

    if size == 0:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.from_numpy(memory[start : start + size]).untyped_storage()


def _plain_tensors(state_dict: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    # A lazily conjugated or negated view (x.conj()) carries a flag that bytes cannot: write the values it stands for.
    return [(name, tensor.detach().resolve_conj().resolve_neg()) for name, tensor in state_dict.items()]


def _storage_key(tensor: torch.Tensor, row: int) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    # Empty storages all lie at address 0; nothing is shared there, so each stays its own.
    return (storage.data_ptr(), storage.nbytes()) if storage.nbytes() else (0, -row)


def distinct_storages(state_dict: Mapping[str, torch.Tensor]) -> Iterator[torch.UntypedStorage]:
    """Yield each storage once, in the order of the index's storage columns."""
    return _storages(_plain_tensors(state_dict))


def _storages(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[torch.UntypedStorage]:
    """Yield each distinct storage once, in order of first use."""
    seen: set[tuple[int, int]] = set()
    for row, (_, tensor) in enumerate(tensors):
        key = _storage_key(tensor, row)
        if key not in seen:
            seen.add(key)
            yield tensor.untyped_storage()


def _lay_out(tensors: list[tuple[str, torch.Tensor]], versions: tuple[tuple[str, int], ...]) -> WeightIndex:
    starts: list[int] = []
    sizes: list[int] = []
    end = 0
    for storage in _storages(tensors):
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        starts.append(start)
        sizes.append(storage.nbytes())
        end = start + sizes[-1]

    rows_by_key: dict[tuple[int, int], int] = {}
    ids = [rows_by_key.setdefault(_storage_key(t, row), len(rows_by_key)) for row, (_, t) in enumerate(tensors)]
    users = [0] * len(sizes)
    for storage_id in ids:
        users[storage_id] += 1

    def stride_of(tensor: torch.Tensor, storage_id: int) -> tuple[int, ...] | None:
        fills = tensor.numel() * tensor.element_size() == sizes[storage_id] > 0
        if users[storage_id] == 1 and fills and tensor.is_contiguous():
            return None
        return tuple(tensor.stride())

    return WeightIndex(
        names=tuple(name for name, _ in tensors),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in tensors),
        shapes=tuple(tuple(tensor.shape) for _, tensor in tensors),
        strides=tuple(stride_of(tensor, i) for (_, tensor), i in zip(tensors, ids, strict=True)),
        storage_ids=tuple(ids),
        storage_offsets=tuple(int(tensor.storage_offset()) for _, tensor in tensors),
        storage_starts=tuple(starts),
        storage_sizes=tuple(sizes),
        total_bytes=end,
        module_versions=versions,
    )


def _write_at(descriptor: int, storage: torch.UntypedStorage, start: int) -> None:
    import torch

    if storage.nbytes() == 0:
        return
    flat: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    data = memoryview(flat)
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written : written + _WRITE_BYTES], start + written)
