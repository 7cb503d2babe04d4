"""A dry run of a checkpoint's pickle: what it would import and which storages it claims, with nothing run.

``torch.load(weights_only=True)`` remains the gate. The dry run comes first because it can name what an unsafe pickle
asks for, and because torch takes a storage's length from the pickle's claim, not from the size of its record.
"""

from __future__ import annotations

import io
import pickle  # every class it could construct is replaced by an inert one
import re
from dataclasses import dataclass, field
from typing import Any

from mixpeek_ray.core.errors import InvalidWeightsError, UnsafePickleError
from mixpeek_ray.formats.tensors import shown

# What a state_dict's pickle may name: a subset of what torch's own weights_only loader allows.
_ALLOWED = re.compile(
    r"collections\.OrderedDict"
    r"|_codecs\.encode|(builtins|__builtin__)\.(set|bytearray|complex)"
    r"|torch\.(\w+Storage|Tensor|Size|device|[a-z]+\d+\w*|bool|per_(tensor|channel)_\w+)"
    r"|torch\.cuda\.\w+Storage"
    r"|torch\.storage\.(UntypedStorage|TypedStorage)"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\._utils\._rebuild_(sparse_tensor|qtensor|nested_tensor|meta_tensor_no_storage)"
    r"|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.serialization\._get_layout",
    re.ASCII,
)
_MAX_NAMED = 3
# What unpickling raises on bytes that are no pickle; the last two for lengths and memo slots beyond all memory.
_DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, RecursionError,
    OverflowError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StorageClaim:
    """A storage as the pickle describes it."""

    key: str
    # Such as ``FloatStorage``.
    type_name: str
    element_count: int


@dataclass(kw_only=True)
class _Findings:
    names: set[str] = field(default_factory=set)
    claims: list[StorageClaim] = field(default_factory=list)


def scan(data: bytes, *, pickles: int = 1) -> list[StorageClaim]:
    """Return the storages that ``pickles`` pickles at the start of ``data`` claim, in order, repeats included.

    Raises ``UnsafePickleError``, naming it, when one would import anything that no state_dict needs, and
    ``InvalidWeightsError`` when they cannot be parsed.
    """
    findings = _Findings()
    stream = io.BytesIO(data)
    try:
        for _ in range(pickles):
            _DryUnpickler(stream, findings).load()
    except _DAMAGED:
        _refuse_unsafe(findings)
        raise InvalidWeightsError(
            "The PyTorch file cannot be used: its pickle is damaged, or it is no PyTorch file."
        ) from None
    _refuse_unsafe(findings)
    return findings.claims


def _refuse_unsafe(findings: _Findings) -> None:
    unsafe = sorted(name for name in findings.names if _ALLOWED.fullmatch(name) is None)
    if unsafe:
        named = ", ".join(shown(name) for name in unsafe[:_MAX_NAMED])
        raise UnsafePickleError(
            f"The pickle would import {named}, which can run code: save model.state_dict(), not the model itself, "
            "or use safetensors."
        )


class _Inert:
    """Stands in for whatever a pickle names: takes every call that unpickling makes, and does nothing."""

    qualified_name = ""

    def __new__(cls, *_args: object, **_kwargs: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _item: object) -> None:
        pass

    def extend(self, _items: object) -> None:
        pass

    def add(self, _item: object) -> None:
        pass


class _DryUnpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, findings: _Findings) -> None:
        super().__init__(stream)
        self._findings = findings
        self._stand_ins: dict[str, type[_Inert]] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        self._findings.names.add(name)
        if name not in self._stand_ins:
            self._stand_ins[name] = type("_Inert", (_Inert,), {"qualified_name": name})
        return self._stand_ins[name]

    def persistent_load(self, pid: Any, /) -> Any:
        match pid:
            case ("storage", type() as kind, str(key), str(), int(count), *_) if (
                issubclass(kind, _Inert) and count >= 0
            ):
                type_name = kind.qualified_name.rpartition(".")[2]
                self._findings.claims.append(StorageClaim(key=key, type_name=type_name, element_count=count))
            case _:
                raise pickle.UnpicklingError("not a storage")
        return _Inert()
