"""The choice of the weight files in an archive: one file, or all shards of one model."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from mixpeek_ray.core.errors import FormatMismatchError, InvalidWeightsError, UnsafePathError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelFormat
from mixpeek_ray.formats.tensors import MAX_TENSORS, check_state_dict, shown

if TYPE_CHECKING:
    import torch

# What each extension usually holds; anything else in an archive (README, config, tokenizer) is left alone.
_KINDS = {
    ".pt": "PyTorch", ".pth": "PyTorch", ".bin": "PyTorch", ".ckpt": "PyTorch Lightning", ".pkl": "pickle",
    ".safetensors": "safetensors", ".onnx": "ONNX", ".h5": "Keras", ".keras": "Keras", ".gguf": "GGUF",
    ".npz": "NumPy", ".npy": "NumPy", ".msgpack": "Flax", ".tflite": "TensorFlow Lite", ".pb": "TensorFlow",
}  # fmt: skip
_MAX_NAMED = 5
# As Hugging Face libraries number them: model-00001-of-00003.safetensors.
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,5})-of-(?P<count>\d{1,5})", re.ASCII)
_INDEX_ENDING = ".index.json"
# An index names each tensor and its shard: about 100 bytes for each of ``MAX_TENSORS``.
_MAX_INDEX_BYTES = 8 * MIB


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The files of one model, in the order of their shards, and the index that says which tensor lies in which."""

    # Relative to the archive's folder.
    paths: tuple[str, ...]
    index: str | None = None


def find_weight_files(files: Sequence[FileInfo], model_format: ModelFormat, extensions: frozenset[str]) -> WeightFiles:
    """Return the one weight file among ``files``, or the shards of the one model.

    Several files are one model when they are numbered as shards, or when one index lies beside them.
    ``extensions``: file name endings of the format, lower case, with the dot. Raises ``FormatMismatchError``, naming
    what was found, for anything else.
    """
    weights = [file.path for file in files if _is_weight_file(file.path)]
    wanted = " or ".join(sorted(extensions))
    expected = f"an archive with model_format={model_format} must hold one {wanted} file, or the shards of one model"
    if not weights:
        raise FormatMismatchError(f"No weight file was found ({_shown([f.path for f in files])}): {expected}.")
    foreign = [path for path in weights if PurePosixPath(path).suffix.lower() not in extensions]
    if foreign and len(weights) == 1:
        kind = _KINDS[PurePosixPath(foreign[0]).suffix.lower()]
        raise FormatMismatchError(f"{_shown(foreign)} looks like a {kind} file: {expected}.")
    if not foreign:
        folder = PurePosixPath(weights[0]).parent
        indexes = [
            file.path
            for file in files
            if file.path.endswith(_INDEX_ENDING) and PurePosixPath(file.path).parent == folder
        ]
        shards = _numbered(weights)
        if shards is not None or len(weights) == 1:
            return WeightFiles(paths=shards or tuple(weights), index=indexes[0] if shards and indexes else None)
        if len(indexes) == 1 and all(PurePosixPath(path).parent == folder for path in weights):
            return WeightFiles(paths=tuple(sorted(weights)), index=indexes[0])
    raise FormatMismatchError(f"{len(weights)} weight files were found ({_shown(weights)}): {expected}.")


def _numbered(paths: Sequence[str]) -> tuple[str, ...] | None:
    """Return the paths in order if they are the shards of one model, and None if they are not numbered as such."""
    found: dict[int, str] = {}
    models = set()
    for path in map(PurePosixPath, paths):
        match = _SHARD.fullmatch(path.stem)
        if match is None:
            return None
        models.add((path.parent, match["stem"], int(match["count"]), path.suffix))
        found[int(match["number"])] = str(path)
    if len(models) > 1 or len(found) != len(paths):
        return None
    ((_, _, count, _),) = models
    missing = [number for number in range(1, min(count, len(paths) + _MAX_NAMED) + 1) if number not in found]
    if missing or len(found) != count:
        raise FormatMismatchError(
            f"The weights are in {count} shards, but the archive holds {len(found)} of them ({_shown(paths)}): "
            f"pack all shards{f'; number {missing[0]} is missing' if missing else ''}."
        )
    return tuple(found[number] for number in sorted(found))


def open_shards(
    folder: Path, chosen: WeightFiles, open_file: Callable[[Path], OrderedDict[str, torch.Tensor]]
) -> OrderedDict[str, torch.Tensor]:
    """Return the tensors of all shards together, each opened with ``open_file``.

    Raises ``InvalidWeightsError`` when two shards hold a tensor of one name, or the index says something else than the
    shards; ``UnsafePathError`` when it leads out of its folder; and what ``open_file`` raises.
    """
    tensors: OrderedDict[str, torch.Tensor] = OrderedDict()
    homes: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    for path in chosen.paths:
        shard = open_file(folder / path)
        metadata.update(getattr(shard, "_metadata", {}))
        for name, tensor in shard.items():
            if name in homes:
                raise InvalidWeightsError(f"The tensor {shown(name)} is in two shards: save the model again.")
            tensors[name] = tensor
            homes[name] = PurePosixPath(path).name
    if chosen.index is not None:
        _check_index(_read_index(folder / chosen.index), homes)
    tensors._metadata = metadata  # type: ignore[attr-defined]
    return check_state_dict(tensors)


def _check_index(index: dict[str, str], homes: dict[str, str]) -> None:
    if index != homes:
        names = sorted(name for name in index.keys() | homes.keys() if index.get(name) != homes.get(name))
        _refuse_index(f"contradicts the shards about {shown(names[0])}")


def _read_index(path: Path) -> dict[str, str]:
    """Return which file each tensor is in, as the index at ``path`` says."""
    if path.stat().st_size > _MAX_INDEX_BYTES:
        _refuse_index(f"has more than {_MAX_INDEX_BYTES} bytes")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
    except InvalidWeightsError:
        raise
    except (ValueError, RecursionError):
        _refuse_index("is not valid JSON")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= MAX_TENSORS:
        _refuse_index(f"has no weight_map of 1 to {MAX_TENSORS} tensors")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            _refuse_index(f"has no file for {shown(name)}")
        if "/" in file or "\\" in file or file in ("", ".", ".."):
            raise UnsafePathError(f"The shard index leads to {shown(file)}: shards must lie beside their index.")
    return weight_map


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        _refuse_index("names a tensor twice")
    return result


def _refuse_index(what: str) -> NoReturn:
    raise InvalidWeightsError(f"The shard index cannot be used: it {what}.")


def _is_weight_file(path: str) -> bool:
    name = PurePosixPath(path)
    # macOS tar stores a file's extended attributes beside it as `._<name>` (AppleDouble), with the same ending.
    return name.suffix.lower() in _KINDS and not name.name.startswith("._")


def _shown(paths: Sequence[str]) -> str:
    named = ", ".join(ascii(path if len(path) <= 80 else "..." + path[-77:]) for path in paths[:_MAX_NAMED])
    rest = len(paths) - _MAX_NAMED
    return (f"{named} and {rest} more" if rest > 0 else named) or "the archive holds no file"
