"""The process that runs the TorchScript programs of one namespace: no other namespace's, and nothing of the replica's.

Started by ``serving.pool_programs`` as a plain ``python -c``; serves one message after the other, and ends with the
replica.
"""

from __future__ import annotations

import mmap
import os
import pickle
import resource
import select
import signal
import socket
import sys
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from mixpeek_ray.core.limits import GIB
from mixpeek_ray.formats.packed import view
from mixpeek_ray.loading.torchscript import open_torchscript
from mixpeek_ray.servables.script_frames import Frame, receive, send

# The socket, the mapped weights of its models, and a few that torch opens in passing.
_MAX_OPEN_FILES = 1_024
# What programs may hold beyond the weights that they were given; private mappings of those count too.
_MEMORY_BYTES = 4 * GIB
_POLLRDHUP = 0x2000  # bits/poll.h


@dataclass(frozen=True, kw_only=True)
class _Program:
    module: torch.jit.ScriptModule
    inputs: tuple[str, ...]


def main() -> None:
    """Serve the socket whose descriptor is the first argument until its other end closes."""
    stream = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with, args=(stream,), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    # An operator of TorchScript that writes a file fails instead.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    programs: dict[str, _Program] = {}
    with suppress(EOFError):
        while True:
            frame = receive(stream)
            try:
                reply = _answer(programs, frame)
            except Exception as error:  # noqa: BLE001  # whatever a program raises is the answer
                reply = Frame(op="failed", names=(type(error).__name__,))
            send(stream, reply)


def _end_with(stream: socket.socket) -> None:
    """End this process when the replica is gone, whatever a program is computing."""
    poll = select.poll()
    poll.register(stream, _POLLRDHUP)
    poll.poll()
    os._exit(0)


def _answer(programs: dict[str, _Program], frame: Frame) -> Frame:
    match frame.op:
        case "load":
            programs[frame.key] = _load(frame)
            return Frame(op="loaded", names=programs[frame.key].inputs)
        case "compute":
            return Frame(op="computed", arrays=_compute(programs[frame.key], frame))
        case "unload":
            programs.pop(frame.key, None)
            return Frame(op="unloaded")
    raise ValueError(frame.op)


def _load(frame: Frame) -> _Program:
    index, companions, copied = pickle.loads(frame.payload)  # noqa: S301  # from the process that started this one
    buffer: Any = bytearray(copied)
    offset, length = frame.numbers
    _allow(length)
    if frame.descriptor is not None:
        buffer = _mapped(frame.descriptor, offset, length)
    module = open_torchscript(OrderedDict(view(index, buffer)), companions)
    forward: Any = module.forward
    _, *arguments = forward.schema.arguments
    return _Program(module=module, inputs=tuple(argument.name for argument in arguments))


def _mapped(descriptor: int, offset: int, length: int) -> memoryview:
    """Return a private view of the node's one copy; closes the descriptor."""
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    try:
        mapping = mmap.mmap(
            descriptor,
            offset - start + length,
            flags=mmap.MAP_PRIVATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=start,
        )
    finally:
        os.close(descriptor)
    return memoryview(mapping)[offset - start :]


def _allow(weights_bytes: int) -> None:
    """Raise the limit on private memory by what is about to be mapped."""
    held, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if held == resource.RLIM_INFINITY:
        held = _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (held + weights_bytes, resource.RLIM_INFINITY))


def _compute(program: _Program, frame: Frame) -> dict[str, Any]:
    given = {name: torch.from_numpy(array.copy()) for name, array in frame.arrays.items()}
    with torch.inference_mode():
        made = program.module(**given)
    if isinstance(made, torch.Tensor):
        made = (made,)
    named = made.items() if isinstance(made, dict) else ((f"output_{index}", each) for index, each in enumerate(made))
    return {str(name): _array(tensor) for name, tensor in named}


def _array(tensor: torch.Tensor) -> Any:
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return tensor.detach().cpu().contiguous().numpy()
