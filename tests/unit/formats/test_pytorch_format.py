"""PyTorch files as users save them, and as attackers do (hardening.md rows 14 and 15)."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixpeek_ray.core.errors import ArchiveRefusedError, FormatMismatchError, InvalidWeightsError, UnsafePickleError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.packed import DTYPE_NAMES, dtype_table
from mixpeek_ray.formats.pytorch import open_pytorch

Save = Callable[..., bytes]
LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture
def open_file(tmp_path: Path) -> Callable[[bytes], dict[str, torch.Tensor]]:
    def open_bytes(content: bytes) -> dict[str, torch.Tensor]:
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        return open_pytorch(path)

    return open_bytes


Open = Callable[[bytes], dict[str, torch.Tensor]]


def rezip(content: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return the zip with each entry's content changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)), compress_type=method)
    return buffer.getvalue()


def unchanged(_name: str, content: bytes) -> bytes:
    return content


def test_state_dicts_open_as_they_were_saved(torch_file: Save, open_file: Open) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    opened = open_file(torch_file(model.state_dict()))
    assert list(opened) == list(model.state_dict())
    assert all(torch.equal(opened[name], tensor) for name, tensor in model.state_dict().items())
    assert opened._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_every_dtype_opens(name: str, torch_file: Save, open_file: Open) -> None:
    tensor = torch.frombuffer(bytearray(b"\0\1" * 64), dtype=dtype_table()[name]).view(2, -1)
    opened = open_file(torch_file({"x": tensor, "row": tensor[1]}))
    assert opened["x"].dtype == tensor.dtype
    assert bytes(opened["row"].view(torch.uint8).numpy()) == b"\0\1" * 32


def test_views_of_one_storage_stay_so(torch_file: Save, open_file: Open) -> None:
    base = torch.arange(6.0)
    opened = open_file(torch_file({"base": base, "column": base.view(2, 3)[:, 1]}))
    assert opened["column"].untyped_storage().data_ptr() == opened["base"].untyped_storage().data_ptr()
    assert opened["column"].tolist() == [1.0, 4.0]


def test_parameters_and_plain_dicts_open(torch_file: Save, open_file: Open) -> None:
    assert list(open_file(torch_file(dict(torch.nn.Linear(2, 2).named_parameters())))) == ["weight", "bias"]


def test_a_checkpoint_with_a_state_dict_inside_opens(torch_file: Save, open_file: Open) -> None:
    assert list(open_file(torch_file({"state_dict": {"w": torch.zeros(2)}, "epoch": 7}))) == ["w"]


def test_nothing_is_read_into_memory(torch_file: Save, open_file: Open) -> None:
    opened = open_file(torch_file({"x": torch.zeros(4 * MIB)}))
    address = opened["x"].data_ptr()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        ranges = [line.split() for line in maps if line.rstrip().endswith("model.pt")]
    bounds = [[int(edge, 16) for edge in fields[0].split("-")] for fields in ranges]
    assert any(low <= address < high for low, high in bounds)


def hostile_pickles(canary: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    return {
        "object": (canary, {}),
        "beside weights": ({"w": torch.zeros(2), "x": canary}, {}),
        "as key": ({canary: torch.zeros(2)}, {}),
        "module": (torch.nn.Linear(2, 2), {}),
        "legacy": (canary, LEGACY),
        "legacy module": (torch.nn.Linear(2, 2), LEGACY),
        "protocol 4": (canary, {"pickle_protocol": 4}),
    }


@pytest.mark.parametrize(
    "case", ["object", "beside weights", "as key", "module", "legacy", "legacy module", "protocol 4"]
)
def test_pickles_that_would_run_code(
    case: str, torch_file: Save, open_file: Open, touch_canary: type, tmp_path: Path
) -> None:
    value, options = hostile_pickles(touch_canary(tmp_path / "canary"))[case]
    with pytest.raises(UnsafePickleError) as caught:
        open_file(torch_file(value, **options))
    assert not (tmp_path / "canary").exists()
    assert ("Linear" if "module" in case else "mknod") in caught.value.message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bare_pickles_that_would_run_code(protocol: int, open_file: Open, touch_canary: type, tmp_path: Path) -> None:
    with pytest.raises(UnsafePickleError):
        open_file(pickle.dumps(touch_canary(tmp_path / "canary"), protocol))
    assert not (tmp_path / "canary").exists()


def test_torch_refuses_what_the_dry_run_lets_through(
    torch_file: Save, open_file: Open, touch_canary: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixpeek_ray.formats.pytorch.scan", lambda *_args, **_options: [])
    with pytest.raises(UnsafePickleError, match="weights_only"):
        open_file(torch_file(touch_canary(tmp_path / "canary")))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        [torch.zeros(2)],
        {"net": {"w": torch.zeros(2)}},
        {"model": {"ema": {"w": torch.zeros(2)}}},
        {"w": torch.zeros(2), "epoch": 3},
        {1: torch.zeros(2)},
    ],
    ids=["tensor", "list", "nested", "nested twice", "extra", "number"],
)
def test_other_values_than_state_dicts(value: Any, torch_file: Save, open_file: Open) -> None:
    with pytest.raises(FormatMismatchError, match=r"state_dict\(\)"):
        open_file(torch_file(value))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse CSR", "ignore:TypedStorage")
def test_tensors_that_are_not_plain_memory(torch_file: Save, open_file: Open) -> None:
    for tensor in (
        torch.eye(3).to_sparse(),
        torch.eye(4).to_sparse_csr(),
        torch.quantize_per_tensor(torch.eye(3), 1.0, 0, torch.qint8),
        torch.empty(3, device="meta"),
    ):
        with pytest.raises(InvalidWeightsError):
            open_file(torch_file({"x": tensor}))


def test_an_empty_state_dict(torch_file: Save, open_file: Open) -> None:
    with pytest.raises(InvalidWeightsError, match="no tensor"):
        open_file(torch_file({}))


@pytest.mark.parametrize("shape", [(10**9,), (10**9, 4), (2**62,), (5,)])
def test_stride_zero_giants(shape: tuple[int, ...], torch_file: Save, open_file: Open) -> None:
    content = torch_file({"x": torch.zeros(4).expand(10**9, 4) if len(shape) == 2 else torch.zeros(1).expand(shape)})
    assert len(content) < 4096
    with pytest.raises(InvalidWeightsError, match="contiguous"):
        open_file(content)


def test_deflated_entries(torch_file: Save, open_file: Open) -> None:
    bomb = rezip(torch_file({"x": torch.zeros(16 * MIB)}), unchanged, zipfile.ZIP_DEFLATED)
    assert len(bomb) < MIB
    with pytest.raises(InvalidWeightsError, match="compressed"):
        open_file(bomb)


@pytest.mark.parametrize("length", [0, 8, 15, 17, 4096])
def test_storages_of_another_length_than_claimed(length: int, torch_file: Save, open_file: Open) -> None:
    content = torch_file({"x": torch.zeros(4), "y": torch.zeros(1000)})
    with pytest.raises(InvalidWeightsError, match="claims"):
        open_file(rezip(content, lambda name, data: bytes(length) if name.endswith("data/0") else data))


def test_missing_storages(torch_file: Save, open_file: Open) -> None:
    content = torch_file({"x": torch.zeros(4)}).replace(b"archive/data/0", b"archive/data/1")
    with pytest.raises(InvalidWeightsError, match="missing"):
        open_file(content)


def test_views_that_reach_beyond_their_storage(torch_file: Save, open_file: Open) -> None:
    content = torch_file({"x": torch.arange(8.0)[2:7]})
    # The offset (2) and the only size (5) are one-byte integers in the pickle: make the size 7.
    widened = rezip(content, lambda name, data: data.replace(b"K\x02K\x05", b"K\x02K\x07") if "pkl" in name else data)
    assert widened != rezip(content, unchanged)
    with pytest.raises(InvalidWeightsError):
        open_file(widened)


def directory_entry(content: bytes, name: bytes) -> int:
    return content.rindex(b"PK\x01\x02", 0, content.rindex(name))


def test_entries_that_overlap(torch_file: Save, open_file: Open) -> None:
    content = bytearray(rezip(torch_file({"x": torch.zeros(4), "y": torch.zeros(4)}), unchanged))
    entry = directory_entry(content, b"data/0")
    content[entry + 20 : entry + 28] = struct.pack("<II", 200, 200)
    with pytest.raises(InvalidWeightsError, match="overlaps"):
        open_file(bytes(content))


def test_entries_that_start_at_one_place(torch_file: Save, open_file: Open) -> None:
    content = bytearray(rezip(torch_file({"x": torch.zeros(4), "y": torch.zeros(4)}), unchanged))
    first, second = directory_entry(content, b"data/0"), directory_entry(content, b"data/1")
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    with pytest.raises(InvalidWeightsError):
        open_file(bytes(content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_named_twice(torch_file: Save, open_file: Open) -> None:
    buffer = io.BytesIO(rezip(torch_file({"x": torch.zeros(4)}), unchanged))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(InvalidWeightsError, match="twice"):
        open_file(buffer.getvalue())


@pytest.mark.parametrize("first", [True, False])
def test_entries_whose_names_differ_in_case_alone(first: bool, torch_file: Save, open_file: Open) -> None:
    # torch looks names up without regard to case: it would read the pickle that was not checked.
    entries = {}
    for name, tensor in (("data.pkl", torch.arange(4.0)), ("DATA.PKL", torch.arange(4.0)[1:3])):
        with zipfile.ZipFile(io.BytesIO(torch_file({"x": tensor}))) as archive:
            entries |= {entry: archive.read(entry) for entry in archive.namelist() if not entry.endswith("data.pkl")}
            entries[f"archive/{name}"] = archive.read("archive/data.pkl")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(entries, reverse=not first):
            archive.writestr(name, entries[name])
    with pytest.raises(InvalidWeightsError, match="twice"):
        open_file(buffer.getvalue())


def test_numbers_of_another_byte_order(torch_file: Save, open_file: Open) -> None:
    # torch would swap its private copy, while the file itself may become the packed weights.
    content = rezip(torch_file({"x": torch.ones(4)}), lambda name, data: b"big" if "byteorder" in name else data)
    with pytest.raises(InvalidWeightsError, match="little-endian"):
        open_file(content)


def test_bytes_around_the_zip(torch_file: Save, open_file: Open) -> None:
    content = torch_file({"x": torch.zeros(4)})
    for around in (b"PK\x03\x04" + content, content + b"x", content[:-1], content[: len(content) // 2]):
        with pytest.raises(InvalidWeightsError):
            open_file(around)


def test_directories_that_two_readers_would_look_for_in_two_places(torch_file: Save, open_file: Open) -> None:
    content = torch_file({"x": torch.zeros(4)})
    locator = content.index(b"PK\x06\x07")
    assert len(content) - locator == 42
    end_64 = content[locator - 56 : locator]
    moved = content[: locator - 56] + bytes(8) + end_64 + content[locator:]
    elsewhere = bytearray(content)
    elsewhere[locator + 8 : locator + 16] = struct.pack("<Q", 0)
    shifted = bytearray(content)
    shifted[locator - 8 : locator] = struct.pack("<Q", int.from_bytes(shifted[locator - 8 : locator], "little") + 1)
    plain = bytearray(rezip(content, unchanged))
    plain[-6:-2] = struct.pack("<I", int.from_bytes(plain[-6:-2], "little") + 1)
    for changed in (moved, elsewhere, shifted, plain):
        with pytest.raises(InvalidWeightsError, match="directory"):
            open_file(bytes(changed))


def test_a_pickle_beyond_the_limit(torch_file: Save, open_file: Open) -> None:
    content = torch_file({"x": torch.zeros(4)})
    padded = rezip(content, lambda name, data: data + bytes(8 * MIB) if name.endswith("data.pkl") else data)
    with pytest.raises(InvalidWeightsError, match="larger"):
        open_file(padded)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(FormatMismatchError, match="TorchScript"):
        open_pytorch(tmp_path / "script.pt")


def test_files_from_before_pytorch_1_6(torch_file: Save, open_file: Open) -> None:
    with pytest.raises(InvalidWeightsError, match=r"1\.6"):
        open_file(torch_file({"x": torch.zeros(4)}, **LEGACY))


def other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("folder/readme", "no weights")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"P", b"hello", b"\x80\x02}.", b"\x80\x02", b"PK\x03\x04", bytes(100), other_zip(), b"\x96" + b"\xff" * 8],
)
def test_other_files(content: bytes, open_file: Open) -> None:
    with pytest.raises(ArchiveRefusedError):
        open_file(content)


@pytest.mark.parametrize("length", [2**62, 2**64 - 1])
def test_lengths_beyond_the_file_are_damage(length: int, open_file: Open) -> None:
    # BYTEARRAY8 is the one opcode whose reader allocates what it announces.
    with pytest.raises(InvalidWeightsError):
        open_file(b"\x80\x05\x96" + struct.pack("<Q", length) + b".")
