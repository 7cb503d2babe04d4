"""Calls on hostile files in a process of their own: with a memory limit, a time limit, and no effect on the caller."""

from __future__ import annotations

import atexit
import io
import logging
import os
import pickle
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

from mixpeek_ray.core import errors
from mixpeek_ray.core.errors import DecompressionLimitError, InvalidWeightsError, UnavailableError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.formats.child_process import start_child
from mixpeek_ray.formats.sandbox_server import LIMIT, TIMED_OUT, TRAILER, Call, Outcome

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

logger = logging.getLogger(__name__)

# For the server's start on a busy machine; a call's own limit runs from its fork.
_START_S = 120.0
# An idle server that leaves can take the first call with it and refuse the second.
_ATTEMPTS = 3
# The index of 65,536 tensors with long names takes some 10 MB.
_MAX_REPLY_BYTES = 64 * MIB
# Nothing of the caller's environment that could be a secret reaches a process that opens hostile files.
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL")
# Threads would not survive the fork.
_FIXED_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_CRASHED = "The weight file crashes its reader: save it again, or use safetensors."
_BOOTSTRAP = "from mixpeek_ray.formats.sandbox_server import main; main()"


def run_limited(
    function: Callable[[*_Arguments], _Result],
    *args: *_Arguments,
    memory_bytes: int,
    seconds: float,
    file_bytes: int = 0,
) -> _Result:
    """Return ``function(*args)``, called in a forked child that is killed after ``seconds``.

    The child may map ``memory_bytes`` of private memory (private file mappings count) and write files of up to
    ``file_bytes``. ``function`` must be importable by name; the result may be made of plain values and of this
    package's own classes. Callable from any thread, also concurrently. The first call in a process also imports torch.

    Raises the ``MixpeekError`` that the function raised; ``DecompressionLimitError`` when it took too long;
    ``InvalidWeightsError`` when it needed too much memory, crashed or failed in a way it did not foresee; and
    ``UnavailableError`` when the sandbox itself does not work.
    """
    call = Call(function=function, arguments=args, memory_bytes=memory_bytes, file_bytes=file_bytes, seconds=seconds)
    reply = next(filter(None, (_server.exchange(call) for _ in range(_ATTEMPTS))), None)
    if reply is None:
        raise UnavailableError("The process that checks archives cannot be started; retry later.")
    kind, signal_number = TRAILER.unpack(reply[-TRAILER.size :])
    if kind == TIMED_OUT:
        raise DecompressionLimitError(f"The weights take longer than {seconds:.0f} s to check: upload a smaller model.")
    if len(reply) == TRAILER.size:
        logger.warning("A sandboxed check ended by signal %d.", signal_number)
        raise InvalidWeightsError(_CRASHED)
    result: _Result = _unwrap(_read_outcome(reply[: -TRAILER.size]))
    return result


def _read_outcome(reply: bytes) -> Outcome:
    try:
        outcome = _RestrictedUnpickler(io.BytesIO(reply)).load()
    except Exception as error:  # a reply that a hostile file forged may raise anything
        logger.warning("A sandboxed check sent a reply that cannot be read.", exc_info=True)
        raise InvalidWeightsError(_CRASHED) from error
    if not isinstance(outcome, Outcome):
        raise InvalidWeightsError(_CRASHED)
    return outcome


def start_early() -> None:
    """Start this process's sandbox server if there is none, without waiting until it has imported torch."""
    _server.start()


def warm_up() -> None:
    """Start this process's sandbox server, so that the first call does not wait for its import of torch."""
    run_limited(_nothing, memory_bytes=64 * MIB, seconds=_START_S)


def _nothing() -> None:
    """Be called."""


def _unwrap(outcome: Outcome) -> Any:
    if outcome.traceback is not None:
        logger.error("A sandboxed check failed in an unforeseen way:\n%s", outcome.traceback)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


class _RestrictedUnpickler(pickle.Unpickler):
    """Reads a child's reply: a child that a hostile file took over must not be able to run code here."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name.startswith("mixpeek_ray."):
            found = super().find_class(module_name, global_name)
            home = getattr(found, "__module__", "")
            # Beside classes, errors.py has the function that its pickled errors are rebuilt with.
            if home == errors.__name__ or (isinstance(found, type) and home.startswith("mixpeek_ray.")):
                return found
        raise pickle.UnpicklingError(f"{module_name}.{global_name} does not belong in a reply")


class _ServerHandle:
    """This process's sandbox server, started when first needed and again when it is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def exchange(self, call: Call) -> bytes | None:
        """Return the child's reply with its trailer, or None when the server went away before serving the call."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                if not self._submit(call.seconds, theirs):
                    return None
            ours.settimeout(_START_S + call.seconds)
            try:
                ours.sendall(pickle.dumps(call))
                reply = _receive(ours, time.monotonic() + _START_S + call.seconds)
            except (BrokenPipeError, ConnectionResetError):
                return None
            except TimeoutError:
                self.stop()
                raise UnavailableError("The process that checks archives does not answer; retry.") from None
        return reply if len(reply) >= TRAILER.size else None

    def start(self) -> None:
        """Start the server unless it is there."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._stop()
                self._start()

    def stop(self) -> None:
        """End the server and all calls it serves."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """Leave the server to the process that started it: for the child of a fork."""
        self.__init__()  # type: ignore[misc]

    def _submit(self, seconds: float, reply: socket.socket) -> bool:
        with self._lock:
            control = self._control
            if control is None:
                control = self._start()
            try:
                socket.send_fds(control, [LIMIT.pack(seconds)], [reply.fileno()])
            except OSError:
                self._stop()
                return False
            return True

    def _start(self) -> socket.socket:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = start_child(_BOOTSTRAP, theirs, kept=_KEPT_ENVIRONMENT, fixed=_FIXED_ENVIRONMENT)
        return self._control

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None


def _receive(stream: socket.socket, deadline: float) -> bytes:
    parts = bytearray()
    while chunk := stream.recv(1 * MIB):
        parts += chunk
        stream.settimeout(max(0.001, deadline - time.monotonic()))
        if len(parts) > _MAX_REPLY_BYTES:
            raise InvalidWeightsError("The weight file holds more than can be described: upload a smaller model.")
    return bytes(parts)


_server = _ServerHandle()
atexit.register(_server.stop)
os.register_at_fork(after_in_child=_server.forget)
