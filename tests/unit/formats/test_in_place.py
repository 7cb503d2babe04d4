"""Files that serve as packed buffers are recognised, and no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.in_place import InPlace, index_in_place
from mixpeek_ray.formats.packed import ALIGNMENT_BYTES, view
from mixpeek_ray.formats.pytorch import open_pytorch
from mixpeek_ray.formats.safetensors import open_safetensors


@pytest.fixture
def index_of(torch_file: Callable[..., bytes], tmp_path: Path) -> Callable[..., InPlace | None]:
    def build(state_dict: Mapping[str, torch.Tensor]) -> InPlace | None:
        path = tmp_path / "model.pt"
        path.write_bytes(torch_file(state_dict))
        return index_in_place(open_pytorch(path), path)

    return build


def buffer_of(path: Path, found: InPlace) -> bytearray:
    return bytearray(path.read_bytes()[found.offset : found.offset + found.index.total_bytes])


def test_what_torch_saves_is_used_as_it_is(index_of: Callable[..., InPlace | None], tmp_path: Path) -> None:
    base = torch.randn(100)
    weights = {"a": torch.randn(3, 5), "base": base, "odd": base[1::2], "empty": torch.empty(0), "half": base.half()}
    found = index_of(weights)
    assert found is not None
    assert all(start % ALIGNMENT_BYTES == 0 for start in found.index.storage_starts)
    viewed = view(found.index, buffer_of(tmp_path / "model.pt", found))
    assert all(torch.equal(viewed[name], tensor) for name, tensor in weights.items())
    assert viewed["odd"].untyped_storage().data_ptr() == viewed["base"].untyped_storage().data_ptr()


def test_computed_tensors_are_packed(index_of: Callable[..., InPlace | None]) -> None:
    assert index_of({"a": torch.tensor([1 + 2j]).conj()}) is None


@pytest.mark.parametrize(("much", "in_place"), [(3 * MIB, False), (MIB, True)])
def test_files_with_much_else_between_are_packed(
    much: int, in_place: bool, torch_file: Callable[..., bytes], tmp_path: Path
) -> None:
    first, last = torch.zeros(4), torch.ones(4)
    path = tmp_path / "model.pt"
    value = {"begun": first, "optimizer": torch.zeros(much), "state_dict": {"first": first, "last": last}}
    path.write_bytes(torch_file(value))
    assert (index_in_place(open_pytorch(path), path) is not None) is in_place


@pytest.mark.parametrize("padding", [0, 8, 40])
def test_safetensors_are_used_wherever_their_header_ends(padding: int, tmp_path: Path) -> None:
    weights = {"a": torch.arange(32.0), "b": torch.arange(64, dtype=torch.uint8), "empty": torch.empty(3, 0)}
    raw = safetensors.torch.save(weights)
    header_end = 8 + int.from_bytes(raw[:8], "little")
    # Spaces may follow the header.
    header = raw[8:header_end] + b" " * padding
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[header_end:])
    found = index_in_place(open_safetensors(path), path)
    assert found is not None
    assert found.index.total_bytes == 32 * 4 + 64
    viewed = view(found.index, buffer_of(path, found))
    assert all(torch.equal(viewed[name], tensor) for name, tensor in weights.items())


def test_tensors_that_are_not_aligned_to_each_other_are_packed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.arange(33.0), "b": torch.arange(32.0)}, path)
    assert index_in_place(open_safetensors(path), path) is None


def test_nothing_to_lay_out_is_packed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.empty(0)}, path)
    assert index_in_place(open_safetensors(path), path) is None


def test_tensors_of_another_file_are_packed(torch_file: Callable[..., bytes], tmp_path: Path) -> None:
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    for path in (first, second):
        path.write_bytes(torch_file({"a": torch.zeros(4)}))
    assert index_in_place(open_pytorch(first), second) is None
