"""TorchScript programs in processes of their own, one a namespace: none shares memory with another's, or with us."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from mixpeek_ray.core.errors import InvalidWeightsError, UnavailableError, ValidationError
from mixpeek_ray.core.logs import get_logger
from mixpeek_ray.formats.child_process import start_child
from mixpeek_ray.loading.shared_files import file_behind, open_shared
from mixpeek_ray.servables.base import NamedArrays, Parameters, ServableSpec, Task, unknown_tensor
from mixpeek_ray.servables.script_frames import BadFrameError, Frame, receive, send

if TYPE_CHECKING:
    from mixpeek_ray.loading.open_model import DeployedModel

_log = get_logger(__name__)

# A process imports torch first: 1.3 s, many times that on a busy machine. The second is a program's, for a batch.
_LOAD_S, _COMPUTE_S = 60.0, 30.0
# Nothing of the replica's environment that could be a secret reaches a process that runs programs of users.
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG", "LC_ALL", "OMP_NUM_THREADS")
_BOOTSTRAP = "from mixpeek_ray.loading.script_child import main; main()"
# What a process receives for what its native code does; others stop it from outside.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class ProgramCrashedError(UnavailableError):
    """A program's native code ended its process."""

    def __init__(self, message: str, *, reason: str = "") -> None:
        """``reason``: what the kernel called it."""
        super().__init__(message)
        self.reason = reason


class ScriptHosts:
    """The processes of a replica; used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}

    def open(self, model: DeployedModel, namespace_id: str, *, name: str) -> ScriptServable:
        """Return the program in its namespace's process. Raises ``InvalidWeightsError``, ``UnavailableError``."""
        with self._lock:
            host = self._hosts.setdefault(namespace_id, _Host())
        return ScriptServable(host, model, name=name)


class ScriptServable:
    """Computes with one program; its process ends when the last of its namespace's programs is closed."""

    def __init__(self, host: _Host, model: DeployedModel, *, name: str) -> None:
        self._host = host
        # Keeps the shared memory that the process maps from being evicted.
        self._model = model
        self._name = name
        # Of this very opening: an older one of the same model may still compute.
        self._key = f"{name} {id(self)}"
        self._process: subprocess.Popen[bytes] | None = None
        with host.lock:
            names = self._load()
        self.spec = ServableSpec(
            task=Task.TENSORS, inputs=tuple(map(unknown_tensor, names)), outputs=(), is_typed=False
        )

    def compute(self, inputs: NamedArrays, parameters: Parameters) -> NamedArrays:
        """Return what the program makes of ``inputs``: ``output_0`` and so on, or its own names.

        Raises ``ValidationError`` when it fails on them, ``UnavailableError`` when it ends its process or takes longer
        than half a minute.
        """
        del parameters  # none changes what a program computes
        with self._host.lock:
            if self._process is None or self._process is not self._host.process:
                self._load()
            reply = self._host.exchange(Frame(op="compute", key=self._key, arrays=inputs), _COMPUTE_S, self._name)
        if reply.op != "computed":
            raise ValidationError(
                f"Model {self._name!a} fails on these inputs ({_shown(reply)}): compare them with what it takes.",
                field="inputs",
            )
        return reply.arrays

    def close(self) -> None:
        """Take the program out of its process."""
        with self._host.lock:
            if self._process is not None and self._process is self._host.process:
                self._host.unload(self._key)
            self._process = None

    def _load(self) -> tuple[str, ...]:
        descriptor, frame = _load_frame(self._model, self._key)
        try:
            reply = self._host.exchange(frame, _LOAD_S, self._name)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        if reply.op != "loaded":
            self._host.unload(self._key)
            raise InvalidWeightsError(
                f"Model {self._name!a} cannot be opened ({_shown(reply)}): save it again with torch.jit.save."
            )
        self._process = self._host.process
        self._host.keys.add(self._key)
        return reply.names


class _Host:
    """One process, started when first needed and again when it is gone; whoever calls it holds ``lock``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.keys: set[str] = set()
        self._stream: socket.socket | None = None

    def exchange(self, frame: Frame, seconds: float, name: str) -> Frame:
        """Return the process's answer.

        Raises ``UnavailableError`` when it is gone, or is ended for taking too long; ``ProgramCrashedError`` when it
        crashed.
        """
        stream = self._stream or self._start()
        stream.settimeout(seconds)
        try:
            send(stream, frame)
            return receive(stream)
        except (OSError, EOFError, BadFrameError) as error:
            reason = self._stop()
            _log.warning("a TorchScript process was lost (%s)", type(error).__name__, extra={"model_id": name})
            problem = f"takes longer than {seconds:g} s" if isinstance(error, TimeoutError) else "ends its process"
            message = f"Model {name!a} {problem}: send other inputs, or less at a time, and try again."
            if reason is not None:
                raise ProgramCrashedError(message, reason=reason) from None
            raise UnavailableError(message) from None

    def unload(self, key: str) -> None:
        """Forget one program; without the last one the process ends."""
        self.keys.discard(key)
        if not self.keys:
            self._stop()
            return
        with suppress(UnavailableError):
            self.exchange(Frame(op="unload", key=key), _COMPUTE_S, key)

    def _start(self) -> socket.socket:
        self._stream, theirs = socket.socketpair()
        with theirs:
            self.process = start_child(_BOOTSTRAP, theirs, kept=_KEPT_ENVIRONMENT)
        return self._stream

    def _stop(self) -> str | None:
        """End the process; return what its native code did to it, if it had ended by that before."""
        reason = None
        if self._stream is not None:
            self._stream.close()
        if self.process is not None:
            self.process.kill()
            status = -self.process.wait()
            reason = signal.strsignal(status) if status in _CRASHES else None
        self._stream = self.process = None
        self.keys.clear()
        return reason


def _load_frame(model: DeployedModel, key: str) -> tuple[int | None, Frame]:
    """Return what makes a process load the model, and the descriptor in it: that of the node's one copy."""
    found = file_behind(model.data.__array_interface__["data"][0]) if model.data.nbytes else None
    descriptor = None if found is None else open_shared(found)
    if found is not None and descriptor is None:
        _log.warning("the object store's memory cannot be mapped by another process: a TorchScript model is copied")
    copied = b"" if descriptor is not None else model.data.tobytes()
    offset = found.offset if found is not None else 0
    payload = pickle.dumps((model.index, model.companions, copied))
    numbers = (offset, model.data.nbytes)
    return descriptor, Frame(op="load", key=key, numbers=numbers, payload=payload, descriptor=descriptor)


def _shown(reply: Frame) -> str:
    return ascii(", ".join(reply.names)[:80])[1:-1]
