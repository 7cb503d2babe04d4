"""What a replica and a process that runs TorchScript say to each other, over a stream socket.

Plain JSON and the arrays' bytes: a program that took its process over must not be able to run code in the replica, so
nothing that comes from there is unpickled.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixpeek_ray.core.limits import MIB
from mixpeek_ray.servables.base import TEXT, NamedArrays
from mixpeek_ray.servables.tensors import DTYPES

# Bytes of the JSON, of the arrays, and of what is neither.
_SIZES = struct.Struct("<QQQ")
_MAX_JSON_BYTES = 1 * MIB
# A batch's outputs; those of a request of the largest body that go far beyond its inputs' size.
_MAX_ARRAYS_BYTES = 1024 * MIB
_PIECE_BYTES = 1 * MIB


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One message."""

    # Load, compute or unload; loaded, computed, unloaded or failed.
    op: str
    # Names the model that it is about.
    key: str = ""
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    arrays: NamedArrays = field(default_factory=dict)
    # From the replica only.
    payload: bytes = b""
    descriptor: int | None = None


class BadFrameError(Exception):
    """The other side says what no side of this protocol does."""


def send(stream: socket.socket, frame: Frame) -> None:
    """Write one message; its descriptor stays open here. Raises ``OSError`` when the other side is gone."""
    arrays = {name: np.ascontiguousarray(array) for name, array in frame.arrays.items()}
    described = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps([frame.op, frame.key, frame.names, frame.numbers, described]).encode()
    size = sum(array.nbytes for array in arrays.values())
    sizes = _SIZES.pack(len(text), size, len(frame.payload))
    socket.send_fds(stream, [sizes], [] if frame.descriptor is None else [frame.descriptor])
    stream.sendall(text)
    for array in arrays.values():
        stream.sendall(array.reshape(-1).view(np.uint8).data)
    stream.sendall(frame.payload)


def receive(stream: socket.socket) -> Frame:
    """Return the next message; its descriptor is the caller's to close.

    Raises ``EOFError`` when the other side is gone, ``TimeoutError`` when it says nothing for the socket's timeout,
    ``BadFrameError``.
    """
    sizes, descriptors, _, _ = socket.recv_fds(stream, _SIZES.size, 1)
    try:
        sizes += _exactly(stream, _SIZES.size - len(sizes)) if sizes else b""
        if not sizes:
            raise EOFError
        text_bytes, arrays_bytes, payload_bytes = _SIZES.unpack(sizes)
        if text_bytes > _MAX_JSON_BYTES or arrays_bytes > _MAX_ARRAYS_BYTES or payload_bytes > _MAX_ARRAYS_BYTES:
            raise BadFrameError("a message is longer than any")
        text = _exactly(stream, text_bytes)
        data = _exactly(stream, arrays_bytes)
        payload = bytes(_exactly(stream, payload_bytes))
        return _parsed(text, data, payload, descriptors[0] if descriptors else None)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _parsed(text: bytearray, data: bytearray, payload: bytes, descriptor: int | None) -> Frame:
    try:
        op, key, names, numbers, described = json.loads(text)
        arrays, place = {}, 0
        for name, dtype, shape in described:
            if dtype == TEXT or min(shape, default=0) < 0:
                raise BadFrameError("an array is none")
            count = math.prod(shape)
            array: Any = np.frombuffer(data, dtype=DTYPES[dtype], count=count, offset=place).reshape(shape)
            arrays[str(name)] = array
            place += array.nbytes
    except (ValueError, TypeError, KeyError) as error:
        raise BadFrameError(f"a message cannot be read ({type(error).__name__})") from None
    return Frame(
        op=str(op), key=str(key), names=tuple(map(str, names)), numbers=tuple(map(int, numbers)), arrays=arrays,
        payload=payload, descriptor=descriptor,
    )  # fmt: skip


def _exactly(stream: socket.socket, size: int) -> bytearray:
    # Grown as it arrives: a size alone must not take memory.
    found = bytearray()
    while len(found) < size:
        piece = stream.recv(min(size - len(found), _PIECE_BYTES))
        if not piece:
            raise EOFError
        found += piece
    return found
