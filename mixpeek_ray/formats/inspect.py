"""From a hostile archive to a description of its weights, or to packed weights on disk."""

from __future__ import annotations

import math
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mixpeek_ray.core.errors import InvalidWeightsError
from mixpeek_ray.core.limits import GIB, MIB
from mixpeek_ray.core.records import ArchiveContents, FileInfo, ModelFormat
from mixpeek_ray.formats.base import MAX_COMPANION_BYTES, Companion, OpenedModel
from mixpeek_ray.formats.in_place import InPlace, index_in_place
from mixpeek_ray.formats.packed import DTYPE_NAMES, WeightIndex, pack, plan
from mixpeek_ray.formats.registry import get_format
from mixpeek_ray.formats.sandbox import run_limited, start_early
from mixpeek_ray.formats.tarball import extract

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Beyond the mapped files themselves: torch's tensor objects, the index, and a hostile header's worth of garbage.
_MEMORY_BYTES = 224 * MIB
# A check reads headers only, packing every byte: 5 s for the one, and a disk at 50 MB/s for the other.
_SECONDS = 5.0
_SECONDS_PER_GIB = 20.0


@dataclass(frozen=True, kw_only=True)
class PackedArchive:
    """A model packed on disk: ``index`` describes the buffer in the file at ``data_path``, from ``data_offset`` on."""

    index: WeightIndex
    data_path: Path
    data_offset: int
    companions: tuple[Companion, ...]
    contents: ArchiveContents

    def map_buffer(self) -> NDArray[np.uint8]:
        """Return the buffer (uint8, one-dimensional), mapped from its file, which may be unlinked meanwhile."""
        size = self.index.total_bytes
        if size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(self.data_path, np.uint8, mode="r", offset=self.data_offset, shape=(size,)).view(np.ndarray)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the sandbox says of an archive; what the archive's files may have made it say, until it is checked."""

    index: WeightIndex
    # Without its files, which the caller knows.
    contents: ArchiveContents
    # Path of the file in the archive that serves as the buffer as it is; None where one was written.
    in_place: str | None
    # Where the buffer begins in its file.
    offset: int
    # Path and length of each companion; their bytes lie end to end in a file.
    companions: tuple[FileInfo, ...]


def inspect_archive(
    stream: BinaryIO, model_format: ModelFormat, work_dir: Path, *, expected_sha256: str | None = None
) -> ArchiveContents:
    """Return what the archive holds, after every check that deploying it would make.

    Needs disk for the unpacked files in ``work_dir``, where nothing is left. Raises a subclass of
    ``ArchiveRefusedError`` for what is wrong with the archive, ``CorruptStoreError`` when its bytes do not have
    ``expected_sha256``, and ``DiskFullError``.
    """
    with _extracted(stream, work_dir, expected_sha256) as (folder, files):
        size = sum(file.size_bytes for file in files)
        found = run_limited(
            _inspect, model_format, folder, files, memory_bytes=size + _MEMORY_BYTES, seconds=_time_limit_s(size)
        )
    return replace(found.contents, files=files)


def pack_archive(
    stream: BinaryIO, model_format: ModelFormat, work_dir: Path, *, expected_sha256: str | None = None
) -> PackedArchive:
    """Return the archive's model, its weights in one file in ``work_dir`` that is then the caller's to remove.

    Needs disk for the unpacked files and, where their layout does not serve as it is, for the packed ones at once.
    Raises what ``inspect_archive`` does, and then leaves nothing.
    """
    data_path = work_dir / f"packed-{secrets.token_hex(8)}"
    with _extracted(stream, work_dir, expected_sha256) as (folder, files):
        size = sum(file.size_bytes for file in files)
        companions_path = folder.with_name(folder.name + "-companions")
        try:
            found = run_limited(
                _pack,
                model_format,
                folder,
                files,
                data_path,
                companions_path,
                memory_bytes=size + _MEMORY_BYTES,
                # Aligning adds up to 63 bytes a tensor, which takes about as many in the file's own headers.
                file_bytes=2 * size + MAX_COMPANION_BYTES,
                seconds=_time_limit_s(size),
            )
            if found.in_place is not None:
                _take_file(folder, found.in_place, files, data_path)
            companions = _read_companions(companions_path, found.companions)
        except BaseException:
            data_path.unlink(missing_ok=True)
            raise
        finally:
            companions_path.unlink(missing_ok=True)
    contents = replace(found.contents, files=files)
    return PackedArchive(
        index=found.index,
        data_path=data_path,
        data_offset=found.offset,
        companions=companions,
        contents=contents,
    )


@contextmanager
def _extracted(
    stream: BinaryIO, work_dir: Path, expected_sha256: str | None
) -> Iterator[tuple[Path, tuple[FileInfo, ...]]]:
    # The sandbox imports torch meanwhile.
    start_early()
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=work_dir) as folder:
        yield Path(folder), extract(stream, Path(folder), expected_sha256=expected_sha256)


def _time_limit_s(size: int) -> float:
    return _SECONDS + _SECONDS_PER_GIB * size / GIB


def _take_file(folder: Path, name: str, files: tuple[FileInfo, ...], data_path: Path) -> None:
    if not any(file.path == name for file in files):
        raise InvalidWeightsError("The weight file crashes its reader: save it again, or use safetensors.")
    (folder / name).rename(data_path)


def _read_companions(path: Path, companions: tuple[FileInfo, ...]) -> tuple[Companion, ...]:
    if not companions:
        return ()
    with path.open("rb") as file:
        return tuple(Companion(path=entry.path, content=file.read(entry.size_bytes)) for entry in companions)


# From here on: in the sandbox


def _inspect(model_format: ModelFormat, folder: Path, files: tuple[FileInfo, ...]) -> _Found:
    opened = _open(model_format, folder, files)
    in_place = _in_place(opened)
    return _found(opened, in_place.index if in_place is not None else plan(opened.tensors))


def _pack(
    model_format: ModelFormat, folder: Path, files: tuple[FileInfo, ...], data_path: Path, companions_path: Path
) -> _Found:
    opened = _open(model_format, folder, files)
    if opened.companions:
        companions_path.write_bytes(b"".join(companion.content for companion in opened.companions))
    in_place = _in_place(opened)
    if in_place is None or opened.weight_file is None:
        return _found(opened, pack(opened.tensors, data_path))
    name = opened.weight_file.relative_to(folder).as_posix()
    return replace(_found(opened, in_place.index), in_place=name, offset=in_place.offset)


def _open(model_format: ModelFormat, folder: Path, files: tuple[FileInfo, ...]) -> OpenedModel:
    opened = get_format(model_format).open(folder, files)
    beside = sum(len(companion.content) for companion in opened.companions)
    if beside > MAX_COMPANION_BYTES:
        raise InvalidWeightsError(
            f"The files that the model needs beside its weights take {beside} bytes, more than the "
            f"{MAX_COMPANION_BYTES} that they may."
        )
    return opened


def _in_place(opened: OpenedModel) -> InPlace | None:
    return index_in_place(opened.tensors, opened.weight_file) if opened.weight_file is not None else None


def _found(opened: OpenedModel, index: WeightIndex) -> _Found:
    # Tied weights are one set of parameters under several names.
    views = set(zip(index.storage_ids, index.storage_offsets, index.shapes, index.strides, strict=True))
    contents = ArchiveContents(
        files=(),
        tensor_count=len(index.names),
        parameter_count=sum(math.prod(shape) for _, _, shape, _ in views),
        dtypes=tuple(sorted(set(index.dtypes), key=DTYPE_NAMES.index)),
        weights_bytes=index.total_bytes,
        kind=opened.kind,
        architecture=opened.architecture,
        inputs=opened.inputs,
        outputs=opened.outputs,
    )
    companions = tuple(FileInfo(path=entry.path, size_bytes=len(entry.content)) for entry in opened.companions)
    return _Found(index=index, contents=contents, in_place=None, offset=0, companions=companions)
