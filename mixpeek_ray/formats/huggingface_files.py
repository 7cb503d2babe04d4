"""The files of an unpacked model directory: where it begins, what of it counts, and its settings as strict JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from mixpeek_ray.core.errors import FormatMismatchError, InvalidWeightsError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo
from mixpeek_ray.formats.tensors import shown

CONFIG = "config.json"
# The list of modules that sentence-transformers writes.
MODULES = "modules.json"
# The largest known: 21,841 ImageNet classes, named twice, take 1.5 MB, and an index of 32,768 tensors 4 MB.
_MAX_JSON_BYTES = 8 * MIB
# Real settings nest 6 deep. Beyond some hundreds, code that copies them runs out of stack.
_MAX_JSON_DEPTH = 32
_MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class ModelDirectory:
    """An unpacked model directory: the folder that ``from_pretrained`` would be given, and the files in it."""

    folder: Path
    # Size in bytes of each file, by its path in ``folder``; without what systems and tools leave behind (`.git`).
    sizes: Mapping[str, int]

    def __contains__(self, path: str) -> bool:
        return path in self.sizes

    def read_json(self, path: str) -> Any:
        """Return the content of a settings file.

        Raises ``InvalidWeightsError`` unless it is one JSON object or list of bounded size and depth, in which no
        object names a key twice.
        """
        if self.sizes[path] > _MAX_JSON_BYTES:
            _refuse(path, f"it has {self.sizes[path]} bytes (limit {_MAX_JSON_BYTES})")
        try:
            content = json.loads((self.folder / path).read_bytes(), object_pairs_hook=_without_duplicates)
        except _DuplicateKeyError as error:
            _refuse(path, f"it names {shown(error.args[0])} twice")
        except (ValueError, RecursionError):
            _refuse(path, "it is not valid JSON")
        if not isinstance(content, dict | list):
            _refuse(path, "it holds neither an object nor a list")
        if _depth(content) > _MAX_JSON_DEPTH:
            _refuse(path, f"it nests deeper than {_MAX_JSON_DEPTH}")
        return content

    def read_object(self, path: str) -> dict[str, Any]:
        """Return the content of a settings file that must be one JSON object; raises as ``read_json`` does."""
        content = self.read_json(path)
        if not isinstance(content, dict):
            _refuse(path, "it holds no object")
        return content


def find_directory(folder: Path, files: Sequence[FileInfo]) -> ModelDirectory:
    """Return the model directory in ``folder``: its top, or the one directory that holds everything else.

    Raises ``FormatMismatchError``, naming what was found, when neither has a config.json or a modules.json.
    """
    sizes = {file.path: file.size_bytes for file in files if not is_hidden(file.path)}
    if CONFIG in sizes or MODULES in sizes:
        return ModelDirectory(folder=folder, sizes=sizes)
    tops = {path.partition("/")[0] for path in sizes}
    if len(tops) == 1:
        top = tops.pop()
        inner = {path.removeprefix(top + "/"): size for path, size in sizes.items()}
        if CONFIG in inner or MODULES in inner:
            return ModelDirectory(folder=folder / top, sizes=inner)
    raise FormatMismatchError(
        f"No {CONFIG} or {MODULES} was found ({named(sorted(sizes))}): an archive with model_format=huggingface holds "
        "what save_pretrained wrote, at its top or in one directory."
    )


def is_hidden(path: str) -> bool:
    """Tell whether a file is what systems and tools leave behind: `.git`, `.cache`, `._name` and `__MACOSX`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def named(paths: Sequence[str]) -> str:
    """Return the first of ``paths`` as an error message may show them."""
    rest = len(paths) - _MAX_NAMED
    text = ", ".join(shown(path) for path in paths[:_MAX_NAMED])
    return (f"{text} and {rest} more" if rest > 0 else text) or "the archive holds no file"


class _DuplicateKeyError(ValueError):
    """An object that names a key twice: two readers could take it for two different things."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateKeyError(key)
        result[key] = value
    return result


def _depth(content: object) -> int:
    depth, level = 0, [content]
    while level:
        depth += 1
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
    return depth


def _refuse(path: str, what: str) -> NoReturn:
    raise InvalidWeightsError(f"The file {shown(path)} cannot be used: {what}.")
