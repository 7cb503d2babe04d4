"""Model directories, as ``save_pretrained`` of transformers and sentence-transformers writes them."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mixpeek_ray.core.errors import FormatMismatchError, InvalidWeightsError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelFormat, ModelKind
from mixpeek_ray.formats.base import MAX_COMPANION_BYTES, Companion, OpenedModel
from mixpeek_ray.formats.huggingface_checks import check_settings, refuse_code_files
from mixpeek_ray.formats.huggingface_files import CONFIG, ModelDirectory, find_directory, named
from mixpeek_ray.formats.huggingface_modules import inside, list_modules
from mixpeek_ray.formats.huggingface_weights import WEIGHT_FILES, read_weights
from mixpeek_ray.formats.tensors import MAX_TENSORS, shown

if TYPE_CHECKING:
    import torch

# Settings, vocabularies and chat templates. Everything else (README, other frameworks' weights) stays behind.
_COMPANIONS = frozenset({".json", ".txt", ".model", ".spm", ".vocab", ".bpe", ".tiktoken", ".jinja"})
# ColBERT's own settings, beside config.json.
_COLBERT = "artifact.metadata"
_CHAT_TEMPLATES = "additional_chat_templates"
# Of no use to a loader: how the model was trained, and which shard a tensor was in.
_LEFT_BEHIND = re.compile(r"trainer_state\.json|all_results\.json|(train|eval)_results\.json|.*\.index\.json")
# Vocabularies: tokens as keys, larger than any settings, and read by the tokenizers alone.
_VOCABULARIES = re.compile(r"tokenizer\.json|tekken\.json|added_tokens\.json|normalizer\.json|.*vocab.*\.json")
# Parsed in Python, at some 30 MB/s; real settings take a few KB.
_MAX_SETTINGS_BYTES = 16 * MIB
# Longer names say nothing to a person.
_MAX_ARCHITECTURE = 128


class HuggingFaceFormat:
    """A directory with a config.json or modules.json, its weights in safetensors or in PyTorch files."""

    model_format = ModelFormat.HUGGINGFACE

    def open(self, folder: Path, files: Sequence[FileInfo]) -> OpenedModel:
        """Check the directory in ``folder`` and return its weights and the small files that loading it needs.

        The tensors of a module in a folder of its own are named after it: ``2_Dense/linear.weight``. Companions keep
        their paths in the model directory. Raises ``RemoteCodeNotAllowedError``, ``UnsafePickleError``,
        ``UnsafePathError``, ``InvalidWeightsError`` or ``FormatMismatchError``; reads nothing that transformers would
        not read, and imports neither transformers nor anything that the archive names.
        """
        refuse_code_files(folder, files)
        directory = find_directory(folder, files)
        folders = [module.folder for module in list_modules(directory)]
        paths = _companion_paths(directory, folders)
        _check_all_settings(directory, paths)
        tensors, weight_files = _read_all_weights(directory, folders)
        return OpenedModel(
            kind=ModelKind.HUGGINGFACE,
            tensors=tensors,
            weight_file=weight_files[0] if len(weight_files) == 1 else None,
            companions=tuple(_companion(directory, path) for path in paths),
            architecture=_architecture(directory, folders),
        )


def _companion_paths(directory: ModelDirectory, folders: Sequence[str]) -> list[str]:
    """Return the paths of the files to keep: settings and vocabularies in the folders that hold parts of the model."""
    parents = {*folders, *(inside(folder, _CHAT_TEMPLATES) for folder in folders), ""}
    paths = [
        path
        for path in sorted(directory.sizes)
        if path.rpartition("/")[0] in parents
        and (PurePosixPath(path).suffix.lower() in _COMPANIONS or path == _COLBERT)
        and not _LEFT_BEHIND.fullmatch(PurePosixPath(path).name)
    ]
    total = sum(directory.sizes[path] for path in paths)
    if total > MAX_COMPANION_BYTES:
        raise InvalidWeightsError(
            f"The settings and vocabularies take {total} bytes (limit {MAX_COMPANION_BYTES}): remove the files that "
            "loading the model does not need."
        )
    return paths


def _check_all_settings(directory: ModelDirectory, paths: Sequence[str]) -> None:
    settings = [
        path for path in paths if path.endswith(".json") and not _VOCABULARIES.fullmatch(PurePosixPath(path).name)
    ]
    total = sum(directory.sizes[path] for path in settings)
    if total > _MAX_SETTINGS_BYTES:
        raise InvalidWeightsError(f"The settings take {total} bytes (limit {_MAX_SETTINGS_BYTES}).")
    for path in settings:
        check_settings(path, directory.read_json(path))


def _read_all_weights(
    directory: ModelDirectory, folders: Sequence[str]
) -> tuple[OrderedDict[str, torch.Tensor], list[Path]]:
    tensors: OrderedDict[str, torch.Tensor] = OrderedDict()
    files: list[Path] = []
    for folder in folders:
        weights, weight_files = read_weights(directory, folder)
        tensors.update((inside(folder, name), tensor) for name, tensor in weights.items())
        files += weight_files
    if not tensors:
        raise FormatMismatchError(
            f"No weights were found ({named(sorted(directory.sizes))}): the directory must hold {WEIGHT_FILES[0]} or "
            f"{WEIGHT_FILES[2]}, in one file or in shards with their index."
        )
    if len(tensors) > MAX_TENSORS:
        raise InvalidWeightsError(f"The directory holds {len(tensors)} tensors, more than the {MAX_TENSORS} allowed.")
    return tensors, files


def _companion(directory: ModelDirectory, path: str) -> Companion:
    return Companion(path=path, content=(directory.folder / path).read_bytes())


def _architecture(directory: ModelDirectory, folders: Sequence[str]) -> str | None:
    for path in (inside(folder, CONFIG) for folder in ("", *folders)):
        if path not in directory:
            continue
        names = directory.read_json(path)
        names = names.get("architectures") if isinstance(names, dict) else None
        if isinstance(names, list) and names and isinstance(names[0], str):
            if not names[0].isidentifier() or len(names[0]) > _MAX_ARCHITECTURE:
                raise InvalidWeightsError(f"In {shown(path)}, the architecture {shown(names[0])} is not a class name.")
            return names[0]
    return None
