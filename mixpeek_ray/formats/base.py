"""What a weight format has to offer, and what it finds in an archive."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelFormat, ModelKind, TensorSignature

if TYPE_CHECKING:
    import torch

# Vocabularies and configs take some 20 MB, a graph without its weights up to 100; they are held in memory whole.
MAX_COMPANION_BYTES = 256 * MIB


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
    """One way of encoding a model in an archive."""

    model_format: ModelFormat

    def open(self, folder: Path, files: Sequence[FileInfo]) -> OpenedModel:
        """Check the files of an unpacked archive and return the model that they hold.

        ``files`` lists what is in ``folder``, paths relative to it. All of it is hostile: call this in the sandbox.
        Raises ``FormatMismatchError`` and other subclasses of ``ArchiveRefusedError``.
        """
