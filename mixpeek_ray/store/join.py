"""Making one blob of several, on backends that keep files and on those that do not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.store.base import BlobPiece, BlobStore

# Big enough that the calls cost nothing beside the copying.
_COPY_BYTES = 4 * MIB


class _Sink(Protocol):
    def write(self, chunk: bytes, /) -> object: ...


def join_by_copying(store: BlobStore, pieces: Sequence[BlobPiece], target: str) -> None:
    """Write the pieces to ``target``, one after the other, and delete them once it is whole.

    Raises ``FileNotFoundError`` when bytes of a piece are missing; then nothing has changed.
    """
    if not store.exists(target):
        copy_pieces(store, pieces, target)
    delete_pieces(store, pieces)


def copy_pieces(store: BlobStore, pieces: Sequence[BlobPiece], target: str) -> None:
    """Write the pieces to ``target``, one after the other. Raises ``FileNotFoundError`` when bytes are missing."""
    writer = store.open_write(target)
    try:
        for piece in pieces:
            with store.open_read(piece.key) as reader:
                _copy(reader, writer, piece.size_bytes)
        writer.commit()
    finally:
        writer.abort()


def delete_pieces(store: BlobStore, pieces: Sequence[BlobPiece]) -> None:
    """Remove what the pieces left."""
    for piece in pieces:
        store.delete(piece.key)


def append_in_place(pieces: Sequence[tuple[Path, int]]) -> None:
    """Append the files, each given with its size in bytes, to the first one, removing each as soon as it is durable.

    So a file that is gone was appended before, and what a dead call left half done is done again. Raises
    ``FileNotFoundError`` when bytes are missing, ``OSError``.
    """
    (first, end_bytes), *rest = pieces
    with open(first, "r+b") as whole:
        _check_holds(whole, end_bytes)
        for path, size_bytes in rest:
            whole.seek(end_bytes)
            end_bytes += size_bytes
            try:
                piece = open(path, "rb")  # noqa: SIM115 (closed below)
            except FileNotFoundError:
                _check_holds(whole, end_bytes)
                continue
            with piece:
                _copy(piece, whole, size_bytes)
            whole.flush()
            os.fsync(whole.fileno())
            path.unlink()


def _copy(source: BinaryIO, sink: _Sink, size_bytes: int) -> None:
    remaining_bytes = size_bytes
    while chunk := source.read(min(_COPY_BYTES, remaining_bytes)):
        sink.write(chunk)
        remaining_bytes -= len(chunk)
    if remaining_bytes:
        raise FileNotFoundError(f"a piece holds {size_bytes - remaining_bytes} bytes, not {size_bytes}")


def _check_holds(file: BinaryIO, size_bytes: int) -> None:
    found_bytes = os.fstat(file.fileno()).st_size
    if found_bytes < size_bytes:
        raise FileNotFoundError(f"a joined blob holds {found_bytes} bytes, not {size_bytes}: a piece is lost")
