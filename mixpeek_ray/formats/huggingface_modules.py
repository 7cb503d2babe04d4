"""The parts of the model in a directory: one, or those that sentence-transformers' modules.json lists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NoReturn

from mixpeek_ray.core.errors import InvalidWeightsError, RemoteCodeNotAllowedError, UnsafePathError
from mixpeek_ray.formats.huggingface_checks import is_plain_path
from mixpeek_ray.formats.huggingface_files import CONFIG, MODULES, ModelDirectory
from mixpeek_ray.formats.tensors import shown

# Written by sentence-transformers for a module that holds modules of its own; its older form is the config.json.
_ROUTER_CONFIGS = ("router_config.json", CONFIG)
_ROUTER_TYPES = "types"
# `sentence_transformers.base.modules.transformer.Transformer`, and what versions before 6 wrote: `….models.Pooling`.
_MODULE_CLASS = re.compile(r"sentence_transformers(\.\w+)*\.(modules|models)(\.\w+)+", re.ASCII)
# Real models have up to five.
_MAX_MODULES = 64


@dataclass(frozen=True, kw_only=True)
class ModelModule:
    """A part of a model that has a folder of its own."""

    # Relative to the model directory; "" is the directory itself.
    folder: str
    # Such as `sentence_transformers.sentence_transformer.modules.pooling.Pooling`; None for a directory without
    # modules.json, which holds one model of transformers.
    class_name: str | None


def list_modules(directory: ModelDirectory) -> list[ModelModule]:
    """Return the parts of the model, in order; modules that a router holds follow it.

    Raises ``RemoteCodeNotAllowedError`` when a module's class is none of sentence-transformers' own,
    ``UnsafePathError`` when a module lies outside the directory, and ``InvalidWeightsError`` when modules.json or a
    router's settings are not what sentence-transformers writes.
    """
    if MODULES not in directory:
        return [ModelModule(folder="", class_name=None)]
    entries = directory.read_json(MODULES)
    if not isinstance(entries, list) or not entries:
        _refuse(MODULES, "it is not a list of modules")
    waiting = [_listed(entry) for entry in reversed(entries)]
    found: dict[str, ModelModule] = {}
    while waiting:
        module = waiting.pop()
        if module.folder in found or len(found) >= _MAX_MODULES:
            _refuse(MODULES, f"it lists {shown(module.folder)} twice, or more than {_MAX_MODULES} modules")
        found[module.folder] = module
        waiting += reversed(_routed(directory, module.folder))
    return list(found.values())


def inside(folder: str, name: str) -> str:
    """Return the path of ``name`` in ``folder``, which may be "" for the directory itself."""
    return f"{folder}/{name}" if folder else name


def _listed(entry: Any) -> ModelModule:
    path, kind, name = (entry.get(key) if isinstance(entry, dict) else None for key in ("path", "type", "name"))
    if not isinstance(path, str) or not isinstance(kind, str) or not isinstance(name, str):
        _refuse(MODULES, "a module must have a name, a path and a type, all text")
    return _checked(MODULES, "", path, kind)


def _routed(directory: ModelDirectory, folder: str) -> list[ModelModule]:
    for name in _ROUTER_CONFIGS:
        path = inside(folder, name)
        types = directory.read_object(path).get(_ROUTER_TYPES) if path in directory else None
        # Other configs may use the name for something else; a router's maps folders to classes.
        if isinstance(types, dict):
            if not all(isinstance(kind, str) for kind in types.values()):
                _refuse(path, "a module's type must be text")
            return [_checked(path, folder, inner, kind) for inner, kind in types.items()]
    return []


def _checked(source: str, parent: str, path: str, kind: str) -> ModelModule:
    if not _MODULE_CLASS.fullmatch(kind):
        raise RemoteCodeNotAllowedError(
            f"In {shown(source)}, a module's type is {shown(kind)}, which is not one of sentence-transformers' own; "
            "code from elsewhere is never run."
        )
    if not is_plain_path(path):
        raise UnsafePathError(f"In {shown(source)}, the module path {shown(path)} leads out of the archive.")
    return ModelModule(folder=inside(parent, path.removesuffix("/")), class_name=kind)


def _refuse(path: str, what: str) -> NoReturn:
    raise InvalidWeightsError(f"The file {shown(path)} cannot be used: {what}.")
