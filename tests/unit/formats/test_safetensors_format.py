"""safetensors files, as the library writes them and as attackers do (hardening.md row 16)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mixpeek_ray.core.errors import ArchiveRefusedError, InvalidWeightsError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.packed import DTYPE_NAMES, dtype_table
from mixpeek_ray.formats.safetensors import open_safetensors

Open = Callable[[bytes], dict[str, torch.Tensor]]


@pytest.fixture
def open_file(tmp_path: Path) -> Open:
    def open_bytes(content: bytes) -> dict[str, torch.Tensor]:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return open_safetensors(path)

    return open_bytes


def as_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.view(-1).view(torch.uint8).numpy())


def build(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("name", [name for name in DTYPE_NAMES if name not in ("complex32", "complex128")])
def test_what_the_library_writes_opens(name: str, open_file: Open) -> None:
    tensor = torch.frombuffer(bytearray(b"\0\1" * 32), dtype=dtype_table()[name]).view(2, -1)
    written = {"x": tensor, "scalar": tensor[0, 0].clone(), "empty": tensor[:0].clone()}
    opened = open_file(safetensors.torch.save(written, metadata={"format": "pt"}))
    assert opened.keys() == written.keys()
    for key, expected in written.items():
        assert (opened[key].dtype, opened[key].shape) == (expected.dtype, expected.shape)
        assert bytes(opened[key].view(-1).view(torch.uint8).numpy()) == bytes(
            expected.view(-1).view(torch.uint8).numpy()
        )


def test_empty_tensors_lie_anywhere_between_others(open_file: Open) -> None:
    header = {"a": entry(0, 2), "e": entry(2, 2), "b": entry(2, 4), "f": entry(4, 4), "z": entry(0, 0, [0, 7])}
    assert {name: len(tensor) for name, tensor in open_file(build(header, bytes(4))).items()} == {
        "a": 2, "e": 0, "b": 2, "f": 0, "z": 0,
    }  # fmt: skip


HEADERS = {
    "overlap": ({"a": entry(0, 3), "b": entry(2, 4)}, 4),
    "same bytes twice": ({"a": entry(0, 4), "b": entry(0, 4)}, 4),
    "hole": ({"a": entry(0, 2), "b": entry(3, 4)}, 4),
    "hole at the start": ({"a": entry(1, 4)}, 4),
    "trailing bytes": ({"a": entry(0, 3)}, 4),
    "beyond the end": ({"a": entry(0, 5)}, 4),
    "empty tensor inside another": ({"a": entry(0, 4), "b": entry(2, 2)}, 4),
    "empty tensor beyond the end": ({"a": entry(0, 4), "b": entry(9, 9)}, 4),
    "offsets in reverse": ({"a": entry(4, 0, [4])}, 4),
    "negative offset": ({"a": entry(-4, 0, [4])}, 4),
    "three offsets": ({"a": {**entry(0, 4), "data_offsets": [0, 4, 4]}}, 4),
    "offset as text": ({"a": {**entry(0, 4), "data_offsets": ["0", 4]}}, 4),
    "offset as fraction": ({"a": {**entry(0, 4), "data_offsets": [0, 4.0]}}, 4),
    "offset as truth": ({"a": {**entry(0, 1), "data_offsets": [False, True]}}, 1),
    "shape larger than data": ({"a": entry(0, 4, [5])}, 4),
    "shape smaller than data": ({"a": entry(0, 4, [3])}, 4),
    "shape that overflows": ({"a": entry(0, 4, [2**32, 2**32, 4])}, 4),
    "shape with a negative": ({"a": entry(0, 4, [-2, -2])}, 4),
    "shape of many ones": ({"a": entry(0, 4, [1] * 100 + [4])}, 4),
    "huge numbers": ({"a": entry(0, 4, [10**4000])}, 4),
    "no shape": ({"a": entry(0, 4, "4")}, 4),
    "unknown dtype": ({"a": entry(0, 4, dtype="F128")}, 4),
    "dtype that is no text": ({"a": entry(0, 4, dtype=["U8"])}, 4),
    "sub-byte dtype": ({"a": entry(0, 4, [8], "F4")}, 4),
    "missing key": ({"a": {"dtype": "U8", "shape": [4]}}, 4),
    "unknown key": ({"a": {**entry(0, 4), "x": 1}}, 4),
    "entry that is no object": ({"a": 4}, 4),
    "metadata that is no text": ({"__metadata__": {"a": 1}, "b": entry(0, 4)}, 4),
    "metadata that is no object": ({"__metadata__": "x", "b": entry(0, 4)}, 4),
    "metadata alone": ({"__metadata__": {"a": "b"}}, 0),
    "nothing": ({}, 0),
    "a list": (b"[]", 0),
    "no JSON": (b"{x}", 0),
    "not UTF-8": (b'{"\xff": 1}', 0),
    "leading space": (b' {"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4),
    "more after the object": (b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}{}', 4),
    "duplicate tensor": (
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}', 4,
    ),
    "duplicate key in a tensor": (b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', 4),
    "deep nesting": (b'{"a":' * 100_000, 0),
    "not a number": (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}', 4),
}  # fmt: skip


@pytest.mark.parametrize(("header", "size"), HEADERS.values(), ids=HEADERS.keys())
def test_headers_that_contradict_the_file(header: Any, size: int, open_file: Open) -> None:
    with pytest.raises(InvalidWeightsError) as caught:
        open_file(build(header, bytes(size)))
    assert caught.value.message.isascii()


GOOD = build({"a": entry(0, 4)}, bytes(4))


@pytest.mark.parametrize(
    "content",
    [b"", b"short", bytes(8), struct.pack("<Q", 2**63) + GOOD[8:], struct.pack("<Q", len(GOOD)) + GOOD[8:],
     struct.pack("<Q", 9 * MIB) + bytes(9 * MIB), GOOD[:-1], GOOD + b"\0", GOOD[:20], b"PK\x03\x04" + bytes(100)],
)  # fmt: skip
def test_lengths_that_do_not_fit(content: bytes, open_file: Open) -> None:
    with pytest.raises(InvalidWeightsError):
        open_file(content)


def test_any_single_changed_header_byte_is_survived(open_file: Open) -> None:
    for position in range(len(GOOD) - 4):
        changed = bytearray(GOOD)
        changed[position] ^= 0x15
        try:
            open_file(bytes(changed))
        except ArchiveRefusedError:
            continue
