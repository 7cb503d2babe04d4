"""The ``_metadata`` of a state_dict: which version of each module's layout it was saved from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

# torch counts layout versions from 1 and stands at 2; a hostile file may hold any integer.
_MAX_VERSION = 2**31


class AssigningMetadata(dict[str, dict[str, Any]]):
    """Per-module metadata that makes a plain ``module.load_state_dict(weights)`` assign tensors instead of copying.

    ``load_state_dict`` looks each module up by its prefix, and assigns where the entry says
    ``assign_to_params_buffers`` (the key that its own ``assign=True`` sets). Every look-up here says so, also for
    modules that the checkpoint does not mention. Copies behave the same; a pickle holds a plain ``OrderedDict`` with
    the versions alone, so that weights saved again with ``torch.save`` load anywhere.
    """

    def __init__(self, versions: Iterable[tuple[str, int]] = ()) -> None:
        super().__init__((prefix, {"version": version, **_ASSIGN}) for prefix, version in versions)

    def get(self, prefix: str, _default: Any = None) -> dict[str, Any]:
        """Return a fresh entry for the module at ``prefix``: torch may write to it."""
        return dict(self[prefix])

    def __missing__(self, prefix: str) -> dict[str, Any]:
        return dict(_ASSIGN)

    def copy(self) -> AssigningMetadata:
        """Return an independent copy that assigns too."""
        return AssigningMetadata(module_versions_of(self))

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> AssigningMetadata:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, ([(prefix, {"version": version}) for prefix, version in module_versions_of(self)],)


_ASSIGN = {"assign_to_params_buffers": True}


def module_versions_of(metadata: object) -> tuple[tuple[str, int], ...]:
    """Return the (module prefix, version) pairs of a state_dict's ``_metadata``, dropping whatever else it holds."""
    if not isinstance(metadata, Mapping):
        return ()
    found = []
    for prefix, entry in metadata.items():
        version = entry.get("version") if isinstance(entry, Mapping) else None
        if isinstance(prefix, str) and type(version) is int and 0 <= version < _MAX_VERSION:
            found.append((prefix, version))
    return tuple(found)
