"""What a weight format has to offer, and the choice of the one weight file in an archive."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from mixpeek_ray.core.errors import FormatMismatchError
from mixpeek_ray.core.records import FileInfo, ModelFormat, ModelKind, TensorSignature

if TYPE_CHECKING:
    import torch

# What each extension usually holds; anything else in an archive (README, config, tokenizer) is left alone.
_KINDS = {
    ".pt": "PyTorch", ".pth": "PyTorch", ".bin": "PyTorch", ".ckpt": "PyTorch Lightning", ".pkl": "pickle",
    ".safetensors": "safetensors", ".onnx": "ONNX", ".h5": "Keras", ".keras": "Keras", ".gguf": "GGUF",
    ".npz": "NumPy", ".npy": "NumPy", ".msgpack": "Flax", ".tflite": "TensorFlow Lite", ".pb": "TensorFlow",
}  # fmt: skip
_MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A small file that a loader needs beside the weights: a config, a tokenizer, a graph without its weights."""

    # Relative, with forward slashes, as the loader's folder shall have it; checked like an archive member's name.
    path: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """What a format found in an unpacked archive: tensors to pack, and what has to travel beside them."""

    kind: ModelKind
    # Views of mapped files: dense CPU tensors of supported dtypes that lie within their storages.
    tensors: OrderedDict[str, torch.Tensor]
    # The one file that all tensors are views of, whose own layout may serve as the packed buffer; else None.
    weight_file: Path | None = None
    companions: tuple[Companion, ...] = ()
    architecture: str | None = None
    inputs: tuple[TensorSignature, ...] = ()
    outputs: tuple[TensorSignature, ...] = ()


class WeightFormat(Protocol):
    """One way of encoding weights in an archive."""

    model_format: ModelFormat
    # File name endings, lower case, with the dot.
    extensions: frozenset[str]

    def open(self, path: Path) -> OrderedDict[str, torch.Tensor]:
        """Check the weight file at ``path`` and return its tensors as views of the mapped file.

        Values are dense CPU tensors of supported dtypes that lie within their storages; a checkpoint's
        ``_metadata`` is kept. The file is hostile: call this in the sandbox. Raises ``InvalidWeightsError``,
        ``UnsafePickleError`` or ``FormatMismatchError``.
        """


def find_weight_file(files: Sequence[FileInfo], weight_format: WeightFormat) -> str:
    """Return the path of the one weight file among ``files``.

    Raises ``FormatMismatchError``, naming what was found, unless exactly one file is a weight file and its ending is
    one of the format's.
    """
    weights = [file.path for file in files if _is_weight_file(file.path)]
    wanted = " or ".join(sorted(weight_format.extensions))
    expected = f"an archive with model_format={weight_format.model_format} must hold exactly one {wanted} file"
    if not weights:
        raise FormatMismatchError(f"No weight file was found ({_shown([f.path for f in files])}): {expected}.")
    if len(weights) > 1:
        raise FormatMismatchError(f"{len(weights)} weight files were found ({_shown(weights)}): {expected}.")
    suffix = PurePosixPath(weights[0]).suffix.lower()
    if suffix not in weight_format.extensions:
        raise FormatMismatchError(f"{_shown(weights)} looks like a {_KINDS[suffix]} file: {expected}.")
    return weights[0]


def _is_weight_file(path: str) -> bool:
    name = PurePosixPath(path)
    # macOS tar stores a file's extended attributes beside it as `._<name>` (AppleDouble), with the same ending.
    return name.suffix.lower() in _KINDS and not name.name.startswith("._")


def _shown(paths: Sequence[str]) -> str:
    named = ", ".join(ascii(path if len(path) <= 80 else "..." + path[-77:]) for path in paths[:_MAX_NAMED])
    rest = len(paths) - _MAX_NAMED
    return (f"{named} and {rest} more" if rest > 0 else named) or "the archive holds no file"
