"""A model's directory as packed weights, in the dtypes that its network computes in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mixpeek_ray.catalog.cards import ModelCard
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.families.networks.build import prepared
from mixpeek_ray.formats.base import Companion, OpenedModel
from mixpeek_ray.formats.huggingface import HuggingFaceFormat
from mixpeek_ray.formats.in_place import index_in_place
from mixpeek_ray.formats.packed import WeightIndex, pack


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedModel:
    """What the object store is given of a model."""

    index: WeightIndex
    # uint8, one-dimensional, mapped from a file that may be unlinked meanwhile.
    data: npt.NDArray[np.uint8]
    companions: tuple[Companion, ...]

    def content_id(self) -> str:
        """Return a SHA-256 of everything, lower-case hex: equal hashes mean equal bytes. Takes 0.7 s a GiB."""
        digest = hashlib.sha256(repr(self.index).encode())
        digest.update(self.data.data)
        for companion in self.companions:
            # Lengths keep apart what else would read the same, one part's end as the next one's beginning.
            digest.update(f"{len(companion.path)} {companion.path} {len(companion.content)} ".encode())
            digest.update(companion.content)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Source:
    path: Path
    state_dict: Mapping[str, torch.Tensor]


def packed_directory(card: ModelCard, folder: Path, files: Sequence[FileInfo], path: Path) -> PackedModel:
    """Return the model in the Hugging Face directory ``folder``, of which ``files`` are looked at.

    The weights are mapped from their own file where it may serve as it lies there, else from a new one at ``path``.
    The directory is its operator's, so it is opened here and not in the sandbox, but held to the rules of an upload:
    raises ``ArchiveRefusedError``, ``DiskFullError``, and ``OSError`` when a file cannot be read.
    """
    opened = HuggingFaceFormat().open(folder, files)
    tensors = prepared(card, _Source(path=folder, state_dict=opened.tensors))
    index, file, offset = _in_place(opened, tensors) or (pack(tensors, path), path, 0)
    size = index.total_bytes
    data = np.memmap(file, np.uint8, mode="r", offset=offset, shape=(size,)) if size else np.empty(0, np.uint8)
    return PackedModel(index=index, data=data.view(np.ndarray), companions=opened.companions)


def _in_place(opened: OpenedModel, tensors: Mapping[str, torch.Tensor]) -> tuple[WeightIndex, Path, int] | None:
    if opened.weight_file is None:
        return None
    # None where a tensor had to be converted: that one lies elsewhere.
    found = index_in_place(tensors, opened.weight_file)
    return (found.index, opened.weight_file, found.offset) if found is not None else None
