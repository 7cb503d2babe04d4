"""The process that sandboxed calls are forked from: it has torch loaded, one thread, and nothing to lose.

Started by ``sandbox`` as a plain ``python -c`` rather than through ``multiprocessing``, whose children import the
caller's ``__main__`` again (in a Ray worker, that starts a worker).

The control socket carries one packet a call: the call's time limit, and the descriptor of a stream socket. The child
forked for it reads a pickled ``Call`` from the stream and writes a pickled ``Outcome``; once the child is gone the
server appends ``TRAILER``, so that the caller can tell a result from a death. The server leaves when the control
socket closes, that is when its caller does, and when it has been idle for a while.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from mixpeek_ray.core.errors import InvalidWeightsError, MixpeekError

LIMIT = struct.Struct("<d")
# Kind of end (one of the three below), then the signal that ended the child, or 0.
TRAILER = struct.Struct("<ii")
EXITED, KILLED, TIMED_OUT = range(3)
_PRELOADED = ("torch", "mixpeek_ray.formats.inspect")
# About 200 MB stay resident while the server lives; starting it again takes a torch import (1 to 2 s).
_IDLE_S = 300.0
# The weight file, the packed file, the reply stream, and a few that torch opens in passing.
_MAX_OPEN_FILES = 64
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Call:
    """A function to call in a child, and what the child may take beyond what the server already holds."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    memory_bytes: int
    file_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call came to: a value, or an answerable error."""

    value: Any = None
    error: MixpeekError | None = None
    # For the log, when the error stands for an exception that the function did not foresee.
    traceback: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Child:
    reply: socket.socket
    deadline: float


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}
        self._timed_out: set[int] = set()
        self._last_use = time.monotonic()
        # A child's end wakes select() up.
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write)

    def serve(self) -> None:
        """Serve until the caller is gone or nothing was asked for a while."""
        while self._children or time.monotonic() - self._last_use < _IDLE_S:
            ready, _, _ = select.select([self._control.fileno(), self._wake], [], [], self._wait_s())
            if self._wake in ready:
                with suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            self._reap()
            self._kill_overdue()
            if self._control.fileno() in ready and not self._accept():
                break
        for pid in self._children:
            _kill_group(pid)

    def _wait_s(self) -> float:
        now = time.monotonic()
        ends = [child.deadline for child in self._children.values()] or [self._last_use + _IDLE_S]
        return max(0.0, min(ends) - now)

    def _accept(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, LIMIT.size, 1)
        if not message:
            return False
        reply = socket.socket(fileno=descriptors[0])
        self._last_use = time.monotonic()
        (seconds,) = LIMIT.unpack(message)
        pid = os.fork()
        if pid == 0:
            self._become_child(reply)
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        self._children[pid] = _Child(reply=reply, deadline=self._last_use + seconds)
        return True

    def _become_child(self, reply: socket.socket) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for child in self._children.values():
            child.reply.close()
        run_child(reply)

    def _reap(self) -> None:
        while self._children:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            # Still a zombie, so its process group cannot be anyone else's yet.
            _kill_group(ended.si_pid)
            _, status = os.waitpid(ended.si_pid, 0)
            child = self._children.pop(ended.si_pid)
            self._report(child, ended.si_pid, status)

    def _report(self, child: _Child, pid: int, status: int) -> None:
        kind = KILLED if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) else EXITED
        if pid in self._timed_out:
            self._timed_out.discard(pid)
            kind = TIMED_OUT
        # Never wait for a caller that does not read.
        with suppress(OSError):
            child.reply.send(TRAILER.pack(kind, os.WTERMSIG(status)), socket.MSG_DONTWAIT)
        child.reply.close()

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for pid, child in self._children.items():
            if child.deadline <= now and pid not in self._timed_out:
                self._timed_out.add(pid)
                _kill_group(pid)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run_child(reply: socket.socket) -> NoReturn:
    """Serve the one call that comes over ``reply``, then end the process."""
    code = 1
    try:
        _detach()
        with reply.makefile("rb") as stream:
            call: Call = pickle.load(stream)  # noqa: S301  # from the process that started this one
        _limit(call)
        outcome = pickle.dumps(_run(call))
        reply.sendall(outcome)
        code = 0
    finally:
        # Not sys.exit: the server's own clean-up must not run here, nor an exception climb into its loop.
        os._exit(code)


def _run(call: Call) -> Outcome:
    try:
        return Outcome(value=call.function(*call.arguments))
    except MixpeekError as error:
        return Outcome(error=error)
    except MemoryError:
        hungry = InvalidWeightsError("The weight file needs far more memory than its size to be read: save it again.")
        return Outcome(error=hungry)
    except OSError:
        unavailable = MixpeekError("The weights could not be read from the disk, or written to it; retry.")
        return Outcome(error=unavailable, traceback=traceback.format_exc())
    except Exception:  # noqa: BLE001  # whatever a hostile file makes a parser raise is the file's fault
        unreadable = InvalidWeightsError("The weight file cannot be read: save it again, or use safetensors.")
        return Outcome(error=unreadable, traceback=traceback.format_exc())


def _detach() -> None:
    with suppress(PermissionError):
        os.setpgid(0, 0)
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The server may have died before the line above took effect.
        if os.getppid() != parent or parent == 1:
            os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)


def _limit(call: Call) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN_FILES, _MAX_OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (call.file_bytes, call.file_bytes))
    # An overrun write must come back as an error, not as the signal's death.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if sys.platform == "linux":
        data = _data_bytes() + call.memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))


def _data_bytes() -> int:
    """Return the private writable memory this process has mapped: what RLIMIT_DATA counts."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Serve calls from the control socket whose descriptor is the first argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in _PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    _Server(control).serve()
