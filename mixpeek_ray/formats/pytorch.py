"""Weights in PyTorch files: a state_dict saved with ``torch.save``, read with ``weights_only`` and nothing else."""

from __future__ import annotations

import pickle  # for the error that torch.load raises
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixpeek_ray.core.errors import FormatMismatchError, InvalidWeightsError, UnsafePickleError
from mixpeek_ray.core.records import ModelFormat
from mixpeek_ray.formats.pickle_scan import StorageClaim, scan
from mixpeek_ray.formats.tensors import check_state_dict, shown
from mixpeek_ray.formats.zip_check import MAX_PICKLE_BYTES, ZipRecord, read_records, require_stored

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


class PyTorchFormat:
    """One ``.pt``, ``.pth`` or ``.bin`` file with a state_dict, or with one under the key ``state_dict``."""

    model_format = ModelFormat.PYTORCH
    extensions = frozenset({".pt", ".pth", ".bin"})

    def open(self, path: Path) -> OrderedDict[str, torch.Tensor]:
        """Check the file and return its state_dict, whose tensors are copy-on-write views of it.

        Raises ``InvalidWeightsError``, ``UnsafePickleError``, ``FormatMismatchError``.
        """
        with path.open("rb") as file:
            if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
                file.seek(0)
                _refuse_unzipped(file.read(MAX_PICKLE_BYTES))
            records = read_records(path)
            program = _find_pickle(records)
            require_stored(records.values())
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
    if "constants.pkl" in records or any(name.startswith("code/") for name in records):
        raise FormatMismatchError(
            "The file is a TorchScript archive, which is not supported yet: save model.state_dict() with torch.save."
        )
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
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        return value["state_dict"]
    return value
