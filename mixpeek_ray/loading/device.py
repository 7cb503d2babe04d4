"""Weights on an accelerator: copied from shared memory through two small pinned buffers, never whole on the host."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.metadata import AssigningMetadata
from mixpeek_ray.formats.packed import dtype_table

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from mixpeek_ray.formats.packed import WeightIndex

# Pinning costs about a millisecond for each of these, a transfer of that size a few: more would gain nothing.
STAGING_BYTES = 32 * MIB
# One is filled while the device reads the other.
_STAGES = 2


def accelerator() -> str | None:
    """Return the device that this process may compute on beside the CPU: its first GPU; None where torch has none."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


def copy_to_device(index: WeightIndex, data: NDArray[np.uint8], device: torch.device) -> OrderedDict[str, torch.Tensor]:
    """Return the tensors on ``device``, in one allocation of ``index.total_bytes`` bytes; shared storages stay shared.

    ``data`` (uint8, one-dimensional) is only read. Takes ``STAGING_BYTES`` twice on the host, pinned where the device
    is a GPU, and returns when the copy is complete. Raises what the device raises when its memory is not enough.
    """
    import torch

    flat = torch.empty(index.total_bytes, dtype=torch.uint8, device=device)
    if device.type == "cuda":
        _copy_staged(data, flat)
    else:
        _copy_chunks(data, flat)
    return view_on_device(index, flat)


def view_on_device(index: WeightIndex, flat: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
    """Return the tensors as views of ``flat`` (uint8, ``index.total_bytes`` long, on any device)."""
    dtypes = dtype_table()
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()
    rows = zip(
        index.names, index.dtypes, index.shapes, index.strides, index.storage_ids, index.storage_offsets, strict=True
    )
    for name, dtype_name, shape, stride, storage_id, offset in rows:
        dtype = dtypes[dtype_name]
        start, size = index.storage_starts[storage_id], index.storage_sizes[storage_id]
        storage = flat[start : start + size - size % dtype.itemsize].view(dtype)
        if stride is None:
            weights[name] = storage.view(shape)
        else:
            # The storage's first element lies `start` bytes into the buffer, and strides count from there.
            weights[name] = storage.as_strided(shape, stride, storage.storage_offset() + offset)
    weights._metadata = AssigningMetadata(index.module_versions)  # type: ignore[attr-defined]
    return weights


def _copy_staged(data: NDArray[np.uint8], flat: torch.Tensor) -> None:
    import torch

    stages = [torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(_STAGES)]
    emptied = [torch.cuda.Event() for _ in stages]  # type: ignore[no-untyped-call]  # its constructor has no types
    stream = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]  # as above
    # The allocation may still be in use by work that was queued before it was freed.
    stream.wait_stream(torch.cuda.current_stream(flat.device))
    with torch.cuda.stream(stream):
        for number, start in enumerate(range(0, len(data), STAGING_BYTES)):
            stage, event = stages[number % _STAGES], emptied[number % _STAGES]
            event.synchronize()
            length = min(STAGING_BYTES, len(data) - start)
            stage.numpy()[:length] = data[start : start + length]
            flat[start : start + length].copy_(stage[:length], non_blocking=True)
            event.record(stream)
    stream.synchronize()


def _copy_chunks(data: NDArray[np.uint8], flat: torch.Tensor) -> None:
    import torch

    stage = torch.empty(min(STAGING_BYTES, len(data)), dtype=torch.uint8)
    for start in range(0, len(data), STAGING_BYTES):
        length = min(STAGING_BYTES, len(data) - start)
        stage.numpy()[:length] = data[start : start + length]
        flat[start : start + length].copy_(stage[:length])
