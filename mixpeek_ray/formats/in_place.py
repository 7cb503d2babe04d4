"""Weight files whose layout already is that of a packed buffer, so that packing them need not copy a byte.

``torch.save`` lays its storages out uncompressed on 64-byte boundaries; in a safetensors file tensors follow each
other, and most have sizes that are multiples of 64. Using such a file as the buffer saves a write of all weights:
packing 0.5 GB took 0.4 s of the 2.2 s that unpacking and packing took together.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.packed import ALIGNMENT_BYTES, WeightIndex, distinct_storages, plan

if TYPE_CHECKING:
    import torch

# Of what a file holds beside weights, one that is used as it is takes this much to memory at most.
_MAX_WASTE_BYTES = 8 * MIB


@dataclass(frozen=True, kw_only=True)
class _Mapping:
    low: int
    high: int
    file_offset: int


@dataclass(frozen=True, kw_only=True)
class InPlace:
    """A file that holds a packed buffer: ``index`` describes the ``index.total_bytes`` bytes from ``offset`` on."""

    index: WeightIndex
    offset: int


def index_in_place(state_dict: Mapping[str, torch.Tensor], path: Path) -> InPlace | None:
    """Return where the file at ``path`` is a packed buffer, or None where the weights have to be packed instead.

    ``state_dict`` is what opening the file returned: views of it, mapped into this process. None when storages are
    not aligned to each other or not part of the file (a tensor that had to be computed), when much else lies between
    them, when there is nothing to lay out, and on systems that do not tell where a file is mapped.
    """
    if sys.platform != "linux":
        return None
    index = plan(state_dict)
    mappings = _mappings_of(path)
    places = [_file_offset(storage.data_ptr(), storage.nbytes(), mappings) for storage in distinct_storages(state_dict)]
    if None in places:
        return None
    spans = [(place, size) for place, size in zip(places, index.storage_sizes, strict=True) if place is not None]
    if not any(size for _, size in spans):
        return None
    offset = min(place for place, size in spans if size)
    end = max(place + size for place, size in spans)
    starts = tuple(place - offset if size else 0 for place, size in spans)
    if end - offset > index.total_bytes + _MAX_WASTE_BYTES or any(start % ALIGNMENT_BYTES for start in starts):
        return None
    return InPlace(index=replace(index, storage_starts=starts, total_bytes=end - offset), offset=offset)


def _mappings_of(path: Path) -> list[_Mapping]:
    """Return where this process has the file mapped, by address."""
    name, found = str(path.resolve()), []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            span, _, offset, _, _, *mapped = line.rstrip("\n").split(maxsplit=5)
            if mapped == [name]:
                low, high = (int(edge, 16) for edge in span.split("-"))
                found.append(_Mapping(low=low, high=high, file_offset=int(offset, 16)))
    return sorted(found, key=lambda mapping: mapping.low)


def _file_offset(address: int, size: int, mappings: list[_Mapping]) -> int | None:
    if size == 0:
        return 0
    position = bisect_right(mappings, address, key=lambda mapping: mapping.low) - 1
    if position < 0 or address + size > mappings[position].high:
        return None
    return address - mappings[position].low + mappings[position].file_offset
