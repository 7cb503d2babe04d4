"""Which files of a Hugging Face directory a built-in model needs: settings, vocabularies and one set of weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mixpeek_ray.core.records import FileInfo

CONFIG = "config.json"
# Settings and vocabularies; a repository's other files (READMEs, images, code, other frameworks' weights) stay behind.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.spm", "*.vocab", "*.bpe", "*.tiktoken", "*.jinja")
SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
# A module's folder, as sentence-transformers names it: `1_Pooling`.
_MODULE = re.compile(r"\d{1,2}_\w{1,60}", re.ASCII)
_SMALL = re.compile(r"\w[\w.-]*\.(json|txt|model|spm|vocab|bpe|tiktoken|jinja)", re.ASCII)
_SAFETENSORS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
_PICKLED = re.compile(r"pytorch_model(-\d{5}-of-\d{5})?\.bin", re.ASCII)


def needed(paths: Iterable[str]) -> list[str]:
    """Return those of ``paths`` (relative, with forward slashes) that a model needs, none of which leads elsewhere.

    Each folder's weights are taken in safetensors where it has them, else in PyTorch files.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition("/")
        if not folder or _MODULE.fullmatch(folder):
            folders[folder].append(name)
    chosen = []
    for folder, names in folders.items():
        weights = [name for name in names if _SAFETENSORS.fullmatch(name)]
        weights = weights or [name for name in names if _PICKLED.fullmatch(name)]
        small = [name for name in names if _SMALL.fullmatch(name)]
        chosen += [f"{folder}/{name}" if folder else name for name in (*small, *weights)]
    return sorted(chosen)


def needed_files(folder: Path) -> list[FileInfo]:
    """Return what a model needs of the directory ``folder``. Raises ``OSError`` when it cannot be read."""
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and _MODULE.fullmatch(entry.name)]
    found = [path for parent in (folder, *inner) for path in parent.iterdir() if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    return [FileInfo(path=path, size_bytes=sizes[path]) for path in needed(sizes)]
