"""Files that serve as packed buffers are recognised, and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.in_place import index_in_place
from mixpeek_ray.formats.packed import ALIGNMENT_BYTES, WeightIndex, view
from mixpeek_ray.formats.pytorch import open_pytorch
from mixpeek_ray.formats.safetensors import open_safetensors


@pytest.fixture
def index_of(torch_file: Callable[..., bytes], tmp_path: Path) -> Callable[..., WeightIndex | None]:
    def build(state_dict: Mapping[str, torch.Tensor]) -> WeightIndex | None:
        path = tmp_path / "model.pt"
        path.write_bytes(torch_file(state_dict))
        return index_in_place(open_pytorch(path), path)

    return build


def test_what_torch_saves_is_used_as_it_is(index_of: Callable[..., WeightIndex | None], tmp_path: Path) -> None:
    base = torch.randn(100)
    weights = {"a": torch.randn(3, 5), "base": base, "odd": base[1::2], "empty": torch.empty(0), "half": base.half()}
    index = index_of(weights)
    assert index is not None
    assert all(start % ALIGNMENT_BYTES == 0 for start in index.storage_starts)
    content = bytearray((tmp_path / "model.pt").read_bytes())
    assert index.total_bytes == len(content)
    found = view(index, content)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert found["odd"].untyped_storage().data_ptr() == found["base"].untyped_storage().data_ptr()


def test_computed_tensors_are_packed(index_of: Callable[..., WeightIndex | None]) -> None:
    assert index_of({"a": torch.tensor([1 + 2j]).conj()}) is None


def test_files_with_much_else_are_packed(torch_file: Callable[..., bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(torch_file({"state_dict": {"a": torch.zeros(4)}, "other": {"b": torch.zeros(3 * MIB)}}))
    assert index_in_place(open_pytorch(path), path) is None


@pytest.mark.parametrize(("padding", "in_place"), [(0, False), (None, True)])
def test_unaligned_files_are_packed(padding: int | None, in_place: bool, tmp_path: Path) -> None:
    raw = safetensors.torch.save({"a": torch.arange(32.0)})
    header_end = 8 + int.from_bytes(raw[:8], "little")
    # Spaces may follow the header: as many as align what comes after it.
    spaces = -header_end % ALIGNMENT_BYTES if padding is None else (8 if header_end % ALIGNMENT_BYTES == 0 else 0)
    header = raw[8:header_end] + b" " * spaces
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[header_end:])
    index = index_in_place(open_safetensors(path), path)
    assert (index is not None) is in_place
    if index is not None:
        assert view(index, bytearray(path.read_bytes()))["a"].tolist() == list(range(32))


def test_tensors_of_another_file_are_packed(torch_file: Callable[..., bytes], tmp_path: Path) -> None:
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    for path in (first, second):
        path.write_bytes(torch_file({"a": torch.zeros(4)}))
    assert index_in_place(open_pytorch(first), second) is None
