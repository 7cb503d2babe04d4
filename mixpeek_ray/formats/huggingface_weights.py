"""The weight files of one folder of a model directory, chosen as transformers chooses them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from mixpeek_ray.core.errors import FormatMismatchError, InvalidWeightsError, UnsafePathError
from mixpeek_ray.formats.huggingface_checks import is_plain_path
from mixpeek_ray.formats.huggingface_files import ModelDirectory
from mixpeek_ray.formats.huggingface_modules import inside
from mixpeek_ray.formats.pytorch import open_pytorch
from mixpeek_ray.formats.safetensors import open_safetensors
from mixpeek_ray.formats.tensors import shown
from mixpeek_ray.formats.weight_files import WeightFiles, open_shards

if TYPE_CHECKING:
    import torch

    Weights = OrderedDict[str, torch.Tensor]

_INDEX = ".index.json"
# In the order in which transformers looks for them; what comes after the first that is there is left alone.
WEIGHT_FILES = (
    "model.safetensors",
    f"model.safetensors{_INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{_INDEX}",
)
_READERS: dict[str, Callable[[Path], Weights]] = {
    ".safetensors": open_safetensors,
    ".bin": open_pytorch,
}
_ADAPTER = "adapter_config.json"


def read_weights(directory: ModelDirectory, folder: str) -> tuple[Weights, tuple[Path, ...]]:
    """Return the tensors of ``folder`` as copy-on-write views of its weight files, and those files.

    Both are empty where it has none. Raises ``FormatMismatchError`` for an adapter without its model,
    ``UnsafePathError`` for an index that leads out of the folder, ``InvalidWeightsError`` for an index and shards that
    contradict each other, and what reading a single file raises.
    """
    if inside(folder, _ADAPTER) in directory:
        raise FormatMismatchError(
            f"The directory holds an adapter ({_ADAPTER}), which needs another model: upload the model that "
            "merge_and_unload() returns."
        )
    for name in WEIGHT_FILES:
        path = inside(folder, name)
        if path not in directory:
            continue
        paths = _shards(directory, path) if name.endswith(_INDEX) else (path,)
        chosen = WeightFiles(paths=paths, index=path if name.endswith(_INDEX) else None)
        reader = _READERS[PurePosixPath(paths[0]).suffix]
        return open_shards(directory.folder, chosen, reader), tuple(directory.folder / shard for shard in paths)
    return OrderedDict(), ()


def _shards(directory: ModelDirectory, index: str) -> tuple[str, ...]:
    """Return the paths of the shards that an index names, in order."""
    weight_map = directory.read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        _refuse(index, "its weight_map is no mapping of tensors to files")
    ending = PurePosixPath(index.removesuffix(_INDEX)).suffix
    folder = index.rpartition("/")[0]
    names = sorted(set(weight_map.values()))
    for name in names:
        if "/" in name or not is_plain_path(name):
            raise UnsafePathError(f"In {shown(index)}, the shard {shown(name)} leads out of the folder.")
        if not name.endswith(ending):
            _refuse(index, f"the shard {shown(name)} does not end in {ending}")
        if inside(folder, name) not in directory:
            _refuse(index, f"the shard {shown(name)} is missing from the archive")
    return tuple(inside(folder, name) for name in names)


def _refuse(path: str, what: str) -> NoReturn:
    raise InvalidWeightsError(f"The file {shown(path)} cannot be used: {what}.")
