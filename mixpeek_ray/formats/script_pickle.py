"""The pickles in a TorchScript archive: which tensors they describe, found without running anything.

TorchScript reads them with an unpickler of its own, which runs no Python, but does not check that a tensor lies within
its storage, and takes operations that Python's refuses (an enum is rebuilt from a bare value). So they are read here
the same way, and held to the operations and types that ``torch.jit.save`` writes.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from mixpeek_ray.core.errors import ArchiveRefusedError, InvalidWeightsError, UnsafePickleError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.pickle_scan import StorageClaim
from mixpeek_ray.formats.tensors import MAX_RANK, MAX_TENSORS, shown

# About 170 bytes a tensor; reading this many bytes takes 2 s at worst.
MAX_SCRIPT_PICKLE_BYTES = 2 * MIB
_REBUILD = "torch._utils._rebuild_tensor_v2"
_RESTORE_TYPE = "torch.jit._pickle.restore_type_tag"
_ALLOWED = re.compile(
    r"__torch__\.(?!torch\.classes\b)[\w.]+"
    r"|torch\.jit\._pickle\.(restore_type_tag|build_(int|tensor|double|bool)list)"
    r"|collections\.OrderedDict|builtins\.complex|torch\.(device|\w+Storage)|torch\._utils\._rebuild_tensor_v2",
    re.ASCII,
)
_NO_PLAIN_MEMORY = re.compile(r"torch\._utils\._rebuild_\w+|torch\.per_\w+_affine", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ScriptTensor:
    """A tensor as a pickle describes it; offset, shape and strides count elements."""

    storage: StorageClaim
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool


@dataclass(frozen=True, kw_only=True)
class ScriptProgram:
    """What a program's attributes hold."""

    # The module's own, without the names of packages.
    class_name: str
    tensors: tuple[ScriptTensor, ...]


def read_program(data: bytes) -> ScriptProgram:
    """Return what a program's ``data.pkl`` describes.

    Raises ``UnsafePickleError``, naming it, for anything but plain values, tensors and the archive's own classes, and
    ``InvalidWeightsError`` when the pickle is damaged or a tensor is not a plain one.
    """
    reader = _Reader()
    module = reader.read(data)
    if not isinstance(module, _Object):
        _refuse("its pickle holds no module")
    return ScriptProgram(class_name=module.class_name.rpartition(".")[2], tensors=tuple(reader.tensors))


def read_constants(data: bytes) -> list[ScriptTensor | str]:
    """Return the tensors and texts that a program's ``constants.pkl`` lists; raises what ``read_program`` does."""
    constants = _Reader().read(data)
    if not isinstance(constants, tuple) or not all(isinstance(value, ScriptTensor | str) for value in constants):
        _refuse("its constants are not tensors and texts")
    return list(constants)


def write_constants(constants: Iterable[ScriptTensor | str], storage_prefix: str) -> bytes:
    """Return a ``constants.pkl`` of the constants, with ``storage_prefix`` before the names of their storages."""
    items = (_text(c) if isinstance(c, str) else _written(c, storage_prefix + c.storage.key) for c in constants)
    return b"\x80\x02(" + b"".join(items) + b"t."


def _written(tensor: ScriptTensor, key: str) -> bytes:
    claim = tensor.storage
    storage = b"".join(
        (b"(", _text("storage"), b"ctorch\n", claim.type_name.encode("ascii"), b"\n", _text(key), _text("cpu"),
         _number(claim.element_count), b"tQ")
    )  # fmt: skip
    shape, strides = (b"(" + b"".join(map(_number, sizes)) + b"t" for sizes in (tensor.shape, tensor.strides))
    grad = b"\x88" if tensor.requires_grad else b"\x89"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage + _number(tensor.offset) + shape + strides + grad + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Object:
    class_name: str


class _Damaged(Exception):
    """The bytes are no pickle that torch.jit.save writes."""


# Stand for values whose content does not matter here.
_LIST, _DICT = object(), object()
_FIXED: dict[str, object] = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_LIST": _LIST, "EMPTY_DICT": _DICT,
}  # fmt: skip
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"})
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# What each adds to the list or dict below it: one value, two, or all down to the mark.
_FILLS = {"APPEND": (_LIST, 1), "SETITEM": (_DICT, 2), "APPENDS": (_LIST, None), "SETITEMS": (_DICT, None)}


class _Reader:
    """A stack machine for the operations that torch.jit.save writes."""

    def __init__(self) -> None:
        self.tensors: list[ScriptTensor] = []
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._storages = 0

    def read(self, data: bytes) -> object:
        """Return what the pickle comes to; fill ``tensors``."""
        try:
            end = 0
            for opcode, argument, position in pickletools.genops(data):
                self._step(opcode.name, argument)
                end = (position or 0) + 1
            if end != len(data) or self._marks or len(self._stack) != 1:
                raise _Damaged
        except ArchiveRefusedError:
            raise
        except (_Damaged, ValueError, LookupError, OverflowError, MemoryError):
            _refuse("its pickle is damaged")
        return self._stack[0]

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _FIXED:
            self._stack.append(_FIXED[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top()
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name == "TUPLE":
            self._stack.append(self._pop_to_mark())
        elif name in _TUPLE_SIZES:
            self._stack.append(self._pop(_TUPLE_SIZES[name]))
        elif name in _FILLS:
            kind, count = _FILLS[name]
            self._pop_to_mark() if count is None else self._pop(count)
            if self._top() is not kind:
                raise _Damaged
        elif name == "GLOBAL":
            self._stack.append(_global(argument))
        elif name == "BINPERSID":
            self._storages += 1
            if self._storages > MAX_TENSORS:
                _refuse(f"it holds more than {MAX_TENSORS} tensors")
            self._stack.append(_storage(*self._pop(1)))
        elif name == "NEWOBJ":
            self._stack.append(_new(*self._pop(2)))
        elif name == "REDUCE":
            self._stack.append(self._call(*self._pop(2)))
        elif name == "BUILD":
            self._pop(1)
            if not isinstance(self._top(), _Object):
                raise _Damaged
        elif name not in ("PROTO", "STOP"):
            _refuse(f"its pickle holds {name}, which torch.jit.save does not write")

    def _floor(self) -> int:
        return self._marks[-1] if self._marks else 0

    def _top(self) -> Any:
        if len(self._stack) <= self._floor():
            raise _Damaged
        return self._stack[-1]

    def _pop(self, count: int) -> tuple[Any, ...]:
        if len(self._stack) - count < self._floor():
            raise _Damaged
        popped = tuple(self._stack[-count:])
        del self._stack[-count:]
        return popped

    def _pop_to_mark(self) -> tuple[Any, ...]:
        floor = self._marks.pop()
        popped = tuple(self._stack[floor:])
        del self._stack[floor:]
        return popped

    def _call(self, function: object, arguments: object) -> object:
        if not isinstance(function, _Global):
            raise _Damaged
        if function.name == _REBUILD:
            tensor = _tensor(arguments)
            if len(self.tensors) == MAX_TENSORS:
                _refuse(f"it holds more than {MAX_TENSORS} tensors")
            self.tensors.append(tensor)
            return tensor
        if function.name == _RESTORE_TYPE:
            return _restore_type(arguments)
        return None


def _global(argument: str) -> _Global:
    name = argument.replace(" ", ".")
    if _ALLOWED.fullmatch(name):
        return _Global(name)
    if _NO_PLAIN_MEMORY.fullmatch(name):
        _refuse("it holds a sparse or quantized tensor; save the model with dense ones")
    _refuse_unsafe(name)


def _new(kind: object, arguments: object) -> object:
    if not isinstance(kind, _Global) or not kind.name.startswith("__torch__.") or arguments != ():
        raise _Damaged
    return _Object(kind.name)


def _storage(pid: object) -> StorageClaim:
    match pid:
        case ("storage", _Global(name), str(key), str(), int(count)) if (
            name.endswith("Storage") and key.isdecimal() and key.isascii() and _is_size(count)
        ):
            return StorageClaim(key=key, type_name=name.removeprefix("torch."), element_count=count)
    raise _Damaged


def _tensor(arguments: object) -> ScriptTensor:
    match arguments:
        case (StorageClaim() as claim, int(offset), tuple(shape), tuple(strides), bool(grad), _) if len(shape) == len(
            strides
        ) <= MAX_RANK and all(map(_is_size, (offset, *shape, *strides))):
            return ScriptTensor(storage=claim, offset=offset, shape=shape, strides=strides, requires_grad=grad)
    raise _Damaged


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _restore_type(arguments: object) -> object:
    match arguments:
        case (value, str(type_name)):
            if "torch.classes" in type_name.replace(" ", ""):
                _refuse_unsafe(type_name)
            return value
    raise _Damaged


def _refuse_unsafe(name: str) -> NoReturn:
    raise UnsafePickleError(
        f"The TorchScript file needs {shown(name)}, which is not allowed: upload model.state_dict() or ONNX instead."
    )


def _refuse(what: str) -> NoReturn:
    raise InvalidWeightsError(f"The TorchScript file cannot be used: {what}.")
