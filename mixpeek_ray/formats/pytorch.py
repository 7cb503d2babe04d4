"""PyTorch files: a state_dict from ``torch.save``, read with ``weights_only`` and nothing else; or TorchScript."""

from __future__ import annotations

import pickle  # for the error that torch.load raises
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpeek_ray.core.errors import FormatMismatchError, InvalidWeightsError, UnsafePickleError
from mixpeek_ray.core.records import FileInfo, ModelFormat, ModelKind
from mixpeek_ray.formats.base import OpenedModel
from mixpeek_ray.formats.pickle_scan import StorageClaim, scan
from mixpeek_ray.formats.tensors import check_state_dict, shown
from mixpeek_ray.formats.torchscript import is_torchscript, open_torchscript
from mixpeek_ray.formats.weight_files import find_weight_files, open_shards
from mixpeek_ray.formats.zip_check import (
    MAX_PICKLE_BYTES,
    ZipRecord,
    read_records,
    require_little_endian,
    require_stored,
)

if TYPE_CHECKING:
    import torch

_ZIP_MAGIC = b"PK\x03\x04"
# A file from before PyTorch 1.6 begins with a pickled magic number, and four more pickles follow.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 4
# Newer dtypes than these are saved as UntypedStorage.
_ELEMENT_BYTES = {
    "UntypedStorage": 1, "BoolStorage": 1, "ByteStorage": 1, "CharStorage": 1, "QInt8Storage": 1, "QUInt8Storage": 1,
    "ShortStorage": 2, "HalfStorage": 2, "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "QInt32Storage": 4,
    "LongStorage": 8, "DoubleStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip

# Where training loops and Lightning put the weights, beside an optimizer's state, counters and settings.
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")
_OPTIMIZER_KEYS = {"state", "param_groups"}


class PyTorchFormat:
    """A file of ``torch.save`` with a state_dict, the shards of one model, or a file of ``torch.jit.save``."""

    model_format = ModelFormat.PYTORCH
    extensions = frozenset({".pt", ".pth", ".bin", ".ckpt"})

    def open(self, folder: Path, files: Sequence[FileInfo]) -> OpenedModel:
        """Check the weight files and return their tensors as copy-on-write views.

        Of a training checkpoint, only its weights. Raises ``FormatMismatchError``, ``InvalidWeightsError``,
        ``UnsafePickleError``, ``UnsafePathError``.
        """
        chosen = find_weight_files(files, self.model_format, self.extensions)
        if len(chosen.paths) > 1:
            return OpenedModel(kind=ModelKind.STATE_DICT, tensors=open_shards(folder, chosen, open_pytorch))
        path = folder / chosen.paths[0]
        records = _read_zip(path)
        if is_torchscript(records):
            return open_torchscript(path, records)
        return OpenedModel(kind=ModelKind.STATE_DICT, tensors=_open_zip(path, records), weight_file=path)


def open_pytorch(path: Path) -> OrderedDict[str, torch.Tensor]:
    """Check the file and return its state_dict, whose tensors are copy-on-write views of it.

    Raises ``InvalidWeightsError``, ``UnsafePickleError``, and ``FormatMismatchError``, also for TorchScript.
    """
    records = _read_zip(path)
    if is_torchscript(records):
        raise FormatMismatchError(
            "The file is a TorchScript archive, which does not belong here: save model.state_dict() with torch.save."
        )
    return _open_zip(path, records)


def _read_zip(path: Path) -> dict[str, ZipRecord]:
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            file.seek(0)
            _refuse_unzipped(file.read(MAX_PICKLE_BYTES))
    return read_records(path)


def _open_zip(path: Path, records: Mapping[str, ZipRecord]) -> OrderedDict[str, torch.Tensor]:
    program = _find_pickle(records)
    require_stored(records.values())
    with path.open("rb") as file:
        require_little_endian(file, records)
        file.seek(program.start)
        claims = scan(file.read(program.size))
    _check_claims(claims, records)
    return check_state_dict(_unwrap(_load(path)))


def _refuse_unzipped(head: bytes) -> None:
    # These files cannot be mapped, and loading one allocates what its pickle claims before a byte of it is read.
    legacy = head.startswith(_LEGACY_MAGIC)
    scan(head, pickles=_LEGACY_PICKLES if legacy else 1)
    if legacy:
        raise InvalidWeightsError(
            "The file was saved in the format from before PyTorch 1.6: load it once and save it again with torch.save."
        )
    raise InvalidWeightsError("The file is a bare pickle: save model.state_dict() with torch.save.")


def _find_pickle(records: Mapping[str, ZipRecord]) -> ZipRecord:
    if "data.pkl" not in records:
        raise FormatMismatchError("The file is a zip but holds no state_dict: save model.state_dict() with torch.save.")
    if records["data.pkl"].size > MAX_PICKLE_BYTES:
        raise InvalidWeightsError(f"The file's pickle is larger than {MAX_PICKLE_BYTES} bytes.")
    return records["data.pkl"]


def _check_claims(claims: Iterable[StorageClaim], records: Mapping[str, ZipRecord]) -> None:
    for claim in claims:
        itemsize = _ELEMENT_BYTES.get(claim.type_name)
        record = records.get(f"data/{claim.key}")
        if itemsize is None or record is None:
            raise InvalidWeightsError(f"The storage {shown(claim.key)} is missing from the file or of unknown type.")
        if claim.element_count * itemsize != record.size:
            raise InvalidWeightsError(
                f"The storage {shown(claim.key)} claims {claim.element_count} elements of {itemsize} bytes, "
                f"but {record.size} bytes are in the file."
            )


def _load(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UnsafePickleError(
            "torch.load(weights_only=True) refuses the file: save model.state_dict() with torch.save and its "
            "default pickle protocol, or use safetensors."
        ) from None
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError) as error:
        # torch's own text names files and source lines of the server.
        raise InvalidWeightsError("The PyTorch file cannot be used: torch.load cannot rebuild its tensors.") from error


def _unwrap(value: Any) -> Any:
    """Return the weights of a training checkpoint; anything else as it is."""
    if not isinstance(value, dict):
        return value
    wrapped = [key for key in _WEIGHT_KEYS if isinstance(value.get(key), dict)]
    if len(wrapped) > 1:
        raise FormatMismatchError(
            f"The file holds weights under {' and '.join(map(shown, wrapped))}: save the state_dict to serve alone."
        )
    weights = value[wrapped[0]] if wrapped else value
    states = {key for key, entry in weights.items() if isinstance(key, str) and isinstance(entry, dict | list)}
    if states >= _OPTIMIZER_KEYS or any("optimizer" in key for key in states):
        raise FormatMismatchError(
            "The file holds the state of an optimizer, which has no weights to serve: save model.state_dict() instead."
        )
    return weights
