"""From a hostile archive to a description of its weights, or to packed weights on disk."""

from __future__ import annotations

import math
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mixpeek_ray.core.limits import GIB, MIB
from mixpeek_ray.core.records import ArchiveContents, FileInfo, ModelFormat
from mixpeek_ray.formats.base import find_weight_file
from mixpeek_ray.formats.in_place import index_in_place
from mixpeek_ray.formats.packed import DTYPE_NAMES, WeightIndex, pack, plan
from mixpeek_ray.formats.registry import get_format
from mixpeek_ray.formats.sandbox import run_limited
from mixpeek_ray.formats.tarball import extract

# Beyond the mapped file itself: torch's tensor objects, the index, and a hostile header's worth of garbage.
_MEMORY_BYTES = 224 * MIB
# A check reads headers only, packing every byte: 5 s for the one, and a disk at 50 MB/s for the other.
_SECONDS = 5.0
_SECONDS_PER_GIB = 20.0


@dataclass(frozen=True, kw_only=True)
class PackedArchive:
    """Weights packed on disk: ``index`` describes the buffer that is the file at ``data_path``."""

    index: WeightIndex
    data_path: Path
    contents: ArchiveContents


def inspect_archive(
    stream: BinaryIO, model_format: ModelFormat, work_dir: Path, *, expected_sha256: str | None = None
) -> ArchiveContents:
    """Return what the archive holds, after every check that deploying it would make.

    Needs disk for the unpacked files in ``work_dir``, where nothing is left. Raises ``UnsupportedFormatError`` before
    reading, a subclass of ``ArchiveRefusedError`` for what is wrong with the archive, ``CorruptStoreError`` when its
    bytes do not have ``expected_sha256``, and ``DiskFullError``.
    """
    with _extracted(stream, model_format, work_dir, expected_sha256) as (path, files):
        size = path.stat().st_size
        index = run_limited(_plan, model_format, path, memory_bytes=size + _MEMORY_BYTES, seconds=_time_limit_s(size))
    return _describe(files, index)


def pack_archive(
    stream: BinaryIO, model_format: ModelFormat, work_dir: Path, *, expected_sha256: str | None = None
) -> PackedArchive:
    """Return the archive's weights, packed in one file in ``work_dir`` that is then the caller's to remove.

    Needs disk for the unpacked files and, where their layout does not serve as it is, for the packed ones at once.
    Raises what ``inspect_archive`` does, and then leaves nothing.
    """
    data_path = work_dir / f"packed-{secrets.token_hex(8)}"
    with _extracted(stream, model_format, work_dir, expected_sha256) as (path, files):
        size = path.stat().st_size
        try:
            index, in_place = run_limited(
                _pack,
                model_format,
                path,
                data_path,
                memory_bytes=size + _MEMORY_BYTES,
                # Aligning adds up to 63 bytes a tensor, which takes about as many in the file's own headers.
                file_bytes=2 * size,
                seconds=_time_limit_s(size),
            )
            if in_place:
                path.rename(data_path)
        except BaseException:
            data_path.unlink(missing_ok=True)
            raise
    return PackedArchive(index=index, data_path=data_path, contents=_describe(files, index))


@contextmanager
def _extracted(
    stream: BinaryIO, model_format: ModelFormat, work_dir: Path, expected_sha256: str | None
) -> Iterator[tuple[Path, tuple[FileInfo, ...]]]:
    weight_format = get_format(model_format)
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=work_dir) as folder:
        files = extract(stream, Path(folder), expected_sha256=expected_sha256)
        yield Path(folder, find_weight_file(files, weight_format)), files


def _time_limit_s(size: int) -> float:
    return _SECONDS + _SECONDS_PER_GIB * size / GIB


def _plan(model_format: ModelFormat, path: Path) -> WeightIndex:
    state_dict = get_format(model_format).open(path)
    return index_in_place(state_dict, path) or plan(state_dict)


def _pack(model_format: ModelFormat, path: Path, data_path: Path) -> tuple[WeightIndex, bool]:
    """Return the index, and whether the weight file itself is the buffer, in which case nothing was written."""
    state_dict = get_format(model_format).open(path)
    index = index_in_place(state_dict, path)
    return (index, True) if index is not None else (pack(state_dict, data_path), False)


def _describe(files: tuple[FileInfo, ...], index: WeightIndex) -> ArchiveContents:
    # Tied weights are one set of parameters under several names.
    views = set(zip(index.storage_ids, index.storage_offsets, index.shapes, index.strides, strict=True))
    return ArchiveContents(
        files=files,
        tensor_count=len(index.names),
        parameter_count=sum(math.prod(shape) for _, _, shape, _ in views),
        dtypes=tuple(sorted(set(index.dtypes), key=DTYPE_NAMES.index)),
        weights_bytes=index.total_bytes,
    )
