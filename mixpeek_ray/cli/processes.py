"""The processes below this one: found through ``/proc``, adopted when orphaned, and ended for certain."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
# SIGKILL works at once; a process in uninterruptible I/O takes as long as its disk.
_KILL_TIMEOUT_S = 5.0
_POLL_S = 0.02
# How the titles of Ray's own processes begin: "ray::DashboardAgent", "ray-dashboard-JobHead".
_RAY_TITLE = "ray"


@dataclass(frozen=True, kw_only=True)
class Process:
    """A live process (zombies are left out)."""

    pid: int
    parent: int
    name: str


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> list[Process]:
    """Return the live processes below ``pid``, parents before children."""
    children: dict[int, list[Process]] = {}
    for process in _all_processes():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += [process.pid for process in below]
    return found


def is_alive(pid: int) -> bool:
    """Tell whether ``pid`` runs (a zombie does not)."""
    return _read_process(pid) is not None


def kill_descendants(pid: int) -> bool:
    """Kill everything below ``pid`` and wait until it is gone; return whether it is."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while below := descendants(pid):
        if time.monotonic() > deadline:
            return False
        for process in below:
            _kill(process.pid)
        _reap()
        time.sleep(_POLL_S)
    _reap()
    return True


def kill_left_over(*, mark: str, scratch: Path) -> int:
    """Kill the processes of this user that an earlier run in ``scratch`` left; return how many.

    What is left when a run was killed together with everything that would have cleaned up after it. Its processes were
    started with ``mark=scratch`` in their environment; Ray's agents write their title over theirs, and are known by
    that title and by the session's log files that they hold open.
    """
    marked, sessions = f"{mark}={scratch}".encode(), f"{scratch}/"
    found = [
        process.pid
        for process in _all_processes()
        if marked in _environment(process.pid)
        or (process.name.startswith(_RAY_TITLE) and any(file.startswith(sessions) for file in _open_files(process.pid)))
    ]
    for pid in found:
        _kill(pid)
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while any(is_alive(pid) for pid in found) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return len(found)


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        # It has ended, or it is someone else's.
        return []


def _open_files(pid: int) -> Iterator[str]:
    # Where it cannot be read the process has ended, is someone else's, or has just closed that file.
    with contextlib.suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(entry)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _all_processes() -> list[Process]:
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()] if _PROC.is_dir() else []
    return [process for process in map(_read_process, pids) if process is not None]


def _read_process(pid: int) -> Process | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # "pid (name) state parent …"; the name itself may hold spaces and brackets.
    name, _, rest = text.partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return None if state in "ZX" else Process(pid=pid, parent=int(parent), name=name)


def _prctl(option: int, argument: int) -> None:
    # Linux only; elsewhere processes end through signals alone.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, argument, 0, 0, 0)
