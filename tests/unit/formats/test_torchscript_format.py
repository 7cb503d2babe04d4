"""TorchScript archives: the same module again, over shared weights; and what none may do (hardening.md)."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import pytest
import torch

from mixpeek_ray.core.errors import ArchiveRefusedError, FormatMismatchError, InvalidWeightsError, UnsafePickleError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelKind
from mixpeek_ray.formats.base import OpenedModel
from mixpeek_ray.formats.packed import DTYPE_NAMES, dtype_table, pack, view
from mixpeek_ray.formats.pytorch import PyTorchFormat, open_pytorch
from mixpeek_ray.loading.torchscript import open_torchscript

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit", "ignore:ComplexHalf"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Mode(Enum):
    FAST = "fast"
    EXACT = "exact"


class EveryConstruct(torch.nn.Module):
    """What users' programs are made of, and texts that look like what is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(10, 4)
        self.recurrent = torch.nn.LSTM(4, 5, 2, batch_first=True)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(5, 5) for _ in range(2)])
        self.tied = self.layers[0].weight
        self.scales = [torch.full((5,), 2.0), torch.ones(5)]
        self.table = {"save": torch.ones(5)}
        self.mode = Mode.EXACT
        self.phase = 1 + 2j
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("hidden", torch.ones(5, dtype=torch.bfloat16), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y, _ = self.recurrent(self.embedding(ids))
        for layer in self.layers:
            y = layer(y)
        steps = 0
        while steps < 3:
            steps += 1
            if self.mode == Mode.EXACT and steps == 2:
                break
        with torch.no_grad():
            note = f"héllo # \" 'from_file' {steps}"
        assert len(note) > 2, "torch.save is not called here"
        future = torch.jit.fork(torch.relu, y)
        squares = [i * i for i in range(steps)]
        return torch.jit.wait(future)[..., ::2] * torch.tensor([1.0, 2.0, 3.0]) + self.scales[0].sum() + len(squares)


def scripted() -> torch.jit.ScriptModule:
    return torch.jit.script(EveryConstruct())


def traced() -> torch.jit.ScriptModule:
    return torch.jit.trace(EveryConstruct().eval(), torch.zeros(2, 3, dtype=torch.long), check_trace=False)


def frozen() -> torch.jit.ScriptModule:
    return torch.jit.freeze(scripted().eval())


def saved(module: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


@pytest.fixture
def open_script(tmp_path: Path) -> Callable[[bytes], OpenedModel]:
    def open_bytes(content: bytes) -> OpenedModel:
        (tmp_path / "model.pt").write_bytes(content)
        return PyTorchFormat().open(tmp_path, [FileInfo(path="model.pt", size_bytes=len(content))])

    return open_bytes


Open = Callable[[bytes], OpenedModel]


def loaded(opened: OpenedModel, path: Path) -> tuple[torch.jit.ScriptModule, dict[str, torch.Tensor]]:
    path.unlink(missing_ok=True)
    weights = view(pack(opened.tensors, path), bytearray(path.read_bytes()))
    return open_torchscript(weights, opened.companions), weights


@pytest.mark.parametrize("build", [scripted, traced, frozen])
def test_programs_come_back_over_shared_weights(
    build: Callable[[], torch.jit.ScriptModule], open_script: Open, tmp_path: Path
) -> None:
    content = saved(build())
    opened = open_script(content)
    assert (opened.kind, opened.architecture) == (ModelKind.TORCHSCRIPT, "EveryConstruct")
    module, weights = loaded(opened, tmp_path / "packed")
    expected = torch.jit.load(io.BytesIO(content))
    ids = torch.arange(6).view(2, 3)
    assert torch.equal(module(ids), expected(ids))
    assert isinstance(module, torch.jit.ScriptModule)
    assert getattr(module, "training", None) == getattr(expected, "training", None)
    shared = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    for ours, theirs in zip(
        [*module.named_parameters(), *module.named_buffers()],
        [*expected.named_parameters(), *expected.named_buffers()],
        strict=True,
    ):
        assert ours[0] == theirs[0]
        assert ours[1].requires_grad == theirs[1].requires_grad
        assert torch.equal(ours[1], theirs[1])
        assert ours[1].numel() == 0 or ours[1].untyped_storage().data_ptr() in shared


def test_constants_are_shared_too(open_script: Open, tmp_path: Path) -> None:
    # Other random weights may saturate, and then half of them gives the same.
    torch.manual_seed(0)
    module, weights = loaded(open_script(saved(frozen())), tmp_path / "packed")
    ids = torch.zeros(1, 2, dtype=torch.long)
    before = module(ids)
    for tensor in weights.values():
        tensor.mul_(0.5)
    assert not torch.equal(module(ids), before)


def test_methods_and_tied_weights_stay(open_script: Open, tmp_path: Path) -> None:
    module, _ = loaded(open_script(saved(scripted())), tmp_path / "packed")
    assert module.tied.data_ptr() == getattr(module.layers, "0").weight.data_ptr()


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_every_dtype(name: str, open_script: Open, tmp_path: Path) -> None:
    tensor = torch.frombuffer(bytearray(b"\0\1" * 64), dtype=dtype_table()[name]).view(2, -1)
    module, _ = loaded(open_script(saved(holder(tensor))), tmp_path / "packed")
    assert module.held.dtype == tensor.dtype
    assert bytes(module.held.view(torch.uint8).numpy()) == b"\0\1" * 64


class Holder(torch.nn.Module):
    def __init__(self, held: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("held", held)

    def forward(self) -> torch.Tensor:
        return self.held


def holder(tensor: torch.Tensor) -> torch.jit.ScriptModule:
    return torch.jit.script(Holder(tensor))


def test_the_same_archive_gives_the_same_program(open_script: Open) -> None:
    content = saved(traced())
    assert open_script(content).companions == open_script(content).companions


def test_extra_files_are_left_out(open_script: Open, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(holder(torch.ones(3)), buffer, _extra_files={"labels.txt": "a,b"})
    module, _ = loaded(open_script(buffer.getvalue()), tmp_path / "packed")
    assert torch.equal(module(), torch.ones(3))


def test_no_place_for_a_program_among_shards(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved(holder(torch.ones(2))))
    with pytest.raises(FormatMismatchError, match="TorchScript"):
        open_pytorch(tmp_path / "a.pt")


# What an upload may not do.


class WritesWhenLoaded(torch.nn.Module):
    def __init__(self, canary: str) -> None:
        super().__init__()
        self.canary = canary

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.canary, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.canary, self.training = state
        torch.save(self.training, self.canary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class ReadsAFile(torch.nn.Module):
    def forward(self) -> torch.Tensor:
        return torch.from_file("secret", size=4)


class QuantizesWeights(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.quantize_per_tensor(torch.eye(3), 1.0, 0, torch.qint8))

    def forward(self) -> torch.Tensor:
        return self.held.dequantize()


def test_a_program_that_writes_when_it_is_loaded(open_script: Open, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content = saved(torch.jit.script(WritesWhenLoaded(str(canary))))
    with pytest.raises(UnsafePickleError, match="'save'"):
        open_script(content)
    assert not canary.exists()
    torch.jit.load(io.BytesIO(content))
    assert canary.exists()  # or the test shows nothing


def test_a_program_that_reads_files(open_script: Open) -> None:
    with pytest.raises(UnsafePickleError, match="'from_file'"):
        open_script(saved(torch.jit.script(ReadsAFile())))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_weights(open_script: Open) -> None:
    with pytest.raises(InvalidWeightsError, match="quantized"):
        open_script(saved(torch.jit.script(QuantizesWeights())))


def changed(content: bytes, changes: dict[str, Callable[[bytes], bytes] | None], method: int = 0) -> bytes:
    """Return the archive with entries changed, or left out where the change is None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for entry in old.infolist():
            name = entry.filename.partition("/")[2]
            change = changes.get(name, bytes)
            if change is not None:
                new.writestr(entry.filename, change(old.read(entry)))
    return buffer.getvalue()


def with_source(text: str) -> bytes:
    content = saved(holder(torch.ones(4)))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name.partition("/")[2] for name in archive.namelist() if name.endswith(".py")]
    return changed(content, {names[0]: lambda source: source + text.encode("utf-8")})


FORBIDDEN = {
    "aten::save by its module": "torch.save(x, 'f')",
    "aten::save as a method": "x.save('f')",
    "on a call": "torch.relu(x).save('f')",
    "on a number": "(1).save('f')",
    "on a text": "'a'.save('f')",
    "with spaces": "torch . save (x)",
    "over lines": "torch.\n    save(x)",
    "through ops": "ops.aten.save(x, 'f')",
    "through autograd": "torch.autograd.save(x)",
    "by name": "getattr(x, 'save')('f')",
    "by an escaped name": "getattr(x, 's\\141ve')('f')",
    "from_file": "torch.from_file('f')",
    "remote call": "rpc_async('worker', f)",
    "distributed": "ops.c10d.allreduce_(x)",
    "quantized": "ops.quantized.linear(x)",
    "an extension": "ops.torchvision.nms(x)",
    "ops under another name": "a = ops",
    "a namespace under another name": "a = ops.aten",
    "ops in brackets": "(ops).c10d.barrier(x)",
    "ops by name": "getattr(ops, 'c10d')",
    "python from prim": "ops.prim.PythonOp(x)",
    "the compiler's own": "ops.prim.BailOut(x)",
    "custom class": "__torch__.torch.classes.dist_c10d.FileStore('f', 1)",
    "custom class by parts": "a = __torch__.torch",
    "custom class in brackets": "(__torch__.torch).classes.x",
    "custom class as type": "x : __torch__.torch.classes.quantized.LinearPackedParamsBase",
}


@pytest.mark.parametrize("text", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_operators_that_reach_outside(text: str, open_script: Open) -> None:
    with pytest.raises(UnsafePickleError) as caught:
        open_script(with_source(f"\ndef helper(x: Tensor) -> Tensor:\n    {text}\n"))
    assert caught.value.message.isascii()


UNREADABLE = {
    "comment": "x # y", "continued line": "torch.sa\\\nve(x)", "triple quotes": '"""a"""', "open text": '"a',
    "not ASCII": "ö = 1", "number before a name": "1.save(x)", "tab": "\tx", "null": "\0",
}  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_source_that_torch_does_not_write(text: str, open_script: Open) -> None:
    with pytest.raises(InvalidWeightsError, match="does not write"):
        open_script(with_source(f"\n{text}\n"))


def test_every_operator_with_a_file_name_is_refused(open_script: Open) -> None:
    schemas = torch._C._jit_get_all_schemas()
    names = {schema.name for schema in schemas if {"filename", "path"} & {a.name for a in schema.arguments}}
    # einsum's path is the order of its products.
    names.discard("aten::einsum")
    assert names >= {"aten::save", "aten::from_file"}
    for namespace, operator in (name.split("::") for name in names):
        with pytest.raises(UnsafePickleError):
            open_script(with_source(f"\n_0 = ops.{namespace}.{operator}(x)\n"))


def edited(change: Callable[[bytes], bytes], name: str = "data.pkl") -> bytes:
    content = saved(holder(torch.arange(6.0).view(2, 3)))
    result = changed(content, {name: change})
    assert result != changed(content, {})
    return result


# (2, 3) over a storage of 6: the sizes, then the strides, as one-byte integers.
SHAPE = b"(K\x02K\x03t(K\x03K\x01t"
DAMAGE: dict[str, Callable[[], bytes]] = {
    "beyond the storage": lambda: edited(lambda d: d.replace(SHAPE, b"(K\x03K\x03t(K\x03K\x01t")),
    "offset beyond the storage": lambda: edited(lambda d: d.replace(b"K\x00" + SHAPE, b"K\x01" + SHAPE)),
    "stride beyond the storage": lambda: edited(lambda d: d.replace(SHAPE, b"(K\x02K\x03t(K\x04K\x01t")),
    "stride zero": lambda: edited(lambda d: d.replace(SHAPE, b"(J\xff\xff\xff\x7fK\x03t(K\x00K\x01t")),
    "negative stride": lambda: edited(lambda d: d.replace(SHAPE, b"(K\x02K\x03t(J\xff\xff\xff\xffK\x01t")),
    "strides missing": lambda: edited(lambda d: d.replace(SHAPE, b"(K\x02K\x03t(K\x03t")),
    "more than the storage has": lambda: edited(lambda d: d.replace(b"K\x06t", b"K\x07t")),
    "storage too short": lambda: edited(lambda d: d[:-1], "data/0"),
    "storage of another type": lambda: edited(lambda d: d.replace(b"FloatStorage", b"DoubleStorage")),
    "storage of no type": lambda: edited(lambda d: d.replace(b"FloatStorage", b"QInt8Storage")),
    "other key": lambda: edited(lambda d: d.replace(b"X\x01\0\0\x000", b"X\x01\0\0\x001")),
    "key that is a path": lambda: edited(lambda d: d.replace(b"X\x01\0\0\x000", b"X\x03\0\0\x00../")),
    "memo that is not there": lambda: edited(lambda d: d[:-1] + b"h\xff."),
    "bytes after the end": lambda: edited(lambda d: d + b"N."),
    "mark left open": lambda: edited(lambda d: d[:-1] + b"(."),
    "another operation": lambda: edited(lambda d: d[:-1] + b"2."),
    "a huge memo": lambda: edited(lambda d: d[:-1] + b"r\xff\xff\xff\xff" + b"j\xfe\xff\xff\xff."),
    "no constants": lambda: changed(saved(holder(torch.ones(2))), {"constants.pkl": None}),
    "no version": lambda: changed(saved(holder(torch.ones(2))), {"version": None}),
    "version that is none": lambda: edited(lambda d: b"ten", "version"),
    "constants of other types": lambda: edited(lambda d: b"\x80\x02K\x01\x85.", "constants.pkl"),
    "big-endian": lambda: edited(lambda d: b"big", "byteorder"),
    "deflated storages": lambda: changed(saved(holder(torch.zeros(4 * MIB))), {}, zipfile.ZIP_DEFLATED),
}  # fmt: skip


@pytest.mark.parametrize("build", DAMAGE.values(), ids=DAMAGE.keys())
def test_archives_that_contradict_themselves(build: Callable[[], bytes], open_script: Open) -> None:
    with pytest.raises(InvalidWeightsError) as caught:
        open_script(build())
    assert caught.value.message.isascii()


UNSAFE_PICKLES: dict[str, Callable[[bytes], bytes]] = {
    "os.system": lambda d: d[:-1] + b"cos\nsystem\nX\x02\0\0\0id\x85R0.",
    "torch's own loader": lambda d: d[:-1] + b"ctorch\nload\n.",
    "custom class": lambda d: d.replace(b"__torch__.", b"__torch__.torch.classes.", 1),
    "remote reference": lambda d: d[:-1] + b"ctorch.distributed.rpc\nrref\n.",
    "type of a custom class": lambda d: (
        d[:-1] + b"ctorch.jit._pickle\nrestore_type_tag\n(]X\x21\0\0\0List[__torch__.torch.classes.c.D]tR."
    ),
}


@pytest.mark.parametrize("change", UNSAFE_PICKLES.values(), ids=UNSAFE_PICKLES.keys())
def test_pickles_that_need_more_than_the_archive(change: Callable[[bytes], bytes], open_script: Open) -> None:
    with pytest.raises(UnsafePickleError):
        open_script(edited(change))


def deflated(content: bytes) -> bytes:
    return changed(saved(holder(torch.ones(2))), {"constants.pkl": lambda _: content}, zipfile.ZIP_DEFLATED)


def test_compressed_entries_are_read_within_limits(open_script: Open, tmp_path: Path) -> None:
    # torch deflates the sources, so that cannot be refused as such.
    bomb = deflated(bytes(512 * MIB))
    assert len(bomb) < MIB
    with pytest.raises(InvalidWeightsError, match="limit"):
        open_script(bomb)


def test_damaged_compression(open_script: Open) -> None:
    content = bytearray(changed(saved(holder(torch.ones(2))), {}, zipfile.ZIP_DEFLATED))
    for entry in zipfile.ZipFile(io.BytesIO(content)).infolist():
        if entry.filename.endswith("constants.pkl"):
            start = entry.header_offset + 30 + len(entry.filename)
            content[start : start + entry.compress_size] = bytes([0xFF]) * entry.compress_size
    with pytest.raises(InvalidWeightsError):
        open_script(bytes(content))


@pytest.mark.parametrize("opcode", [b"(", b"]", b"\x85", b"N", b"K\x01"])
def test_long_pickles_are_read_in_time(opcode: bytes, open_script: Open) -> None:
    program = b"\x80\x02" + opcode * (2 * MIB // len(opcode) - 4) + b"."
    with pytest.raises(ArchiveRefusedError):
        open_script(edited(lambda _: program))


def test_any_single_changed_pickle_byte_is_survived(open_script: Open) -> None:
    content = saved(holder(torch.arange(6.0).view(2, 3)))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    for position in range(len(program)):
        mutated = bytearray(program)
        mutated[position] ^= 0x15
        try:
            open_script(changed(content, {"data.pkl": lambda _, new=bytes(mutated): new}))  # type: ignore[misc]
        except ArchiveRefusedError:
            continue


def test_a_number_beyond_64_bits(open_script: Open) -> None:
    huge = b"\x8a\x09" + struct.pack("<q", 0) + b"\x01"
    with pytest.raises(InvalidWeightsError):
        open_script(edited(lambda d: d.replace(b"K\x00" + SHAPE, huge + SHAPE)))
