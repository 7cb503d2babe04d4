"""A file that outlives its process: which model each thread works on, and what the process said when it crashed.

The file begins with an area that is mapped into memory, a slot for each thread at work: writing to it is no system
call, and what is there stays when the process ends. What follows is ``faulthandler``'s report, which names the thread
that crashed. The owner holds the file's lock for as long as it lives, however it ends.
"""

from __future__ import annotations

import faulthandler
import fcntl
import mmap
import os
import re
import secrets
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mixpeek_ray.core.crashes import ModelCrash

# More threads than any replica computes on; one that finds no slot is not watched.
_SLOTS = 512
# A thread's number and three names of at most 64, 94 and 64 characters.
_SLOT_BYTES = 256
_AREA_BYTES = _SLOTS * _SLOT_BYTES
_THREAD = struct.Struct("<Q")
_FREE = _THREAD.pack(0)

_PREFIX = "crash-"
# Reports begin with it, and name the thread that received the signal.
_REASON = re.compile(rb"^Fatal Python error: ([A-Z][A-Za-z ]{1,40})$", re.MULTILINE)
_CULPRIT = re.compile(rb"^Current thread 0x([0-9a-f]{1,16}) ", re.MULTILINE)
# Where it stops: after a hundred threads, the newest first.
_CUT_SHORT = re.compile(rb"^\.\.\.$", re.MULTILINE)
# With a few hundred threads of a hundred frames each, a report has some 4 MB; what is looked for may be at its end.
_MAX_REPORT_BYTES = 16 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A model that a thread works on."""

    namespace_id: str
    model_id: str
    # The archive's hash.
    content: str

    def encode(self) -> bytes:
        """Return it as a slot holds it."""
        return "\n".join((self.namespace_id, self.model_id, self.content)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Suspect:
        """Return what ``encode`` encoded."""
        namespace_id, model_id, content = data.rstrip(b"\0").decode().split("\n")
        return cls(namespace_id=namespace_id, model_id=model_id, content=content)


class CrashFile:
    """This process's file; used from any thread."""

    def __init__(self, folder: Path) -> None:
        """Make the file in ``folder``, which all processes of the node share."""
        self.path, self._descriptor = _locked_file(folder)
        os.ftruncate(self._descriptor, _AREA_BYTES)
        self._area = mmap.mmap(self._descriptor, _AREA_BYTES)
        self._free = deque(range(0, _AREA_BYTES, _SLOT_BYTES))

    def take_reports(self) -> None:
        """Have the crash of this process reported into the file from now on."""
        # Ray's workers enable it too, and then set handlers of their own (absl's) over it: only a new beginning puts it
        # on top of those. Only a report of all threads tells which of them crashed.
        faulthandler.disable()
        faulthandler.enable(self._descriptor, all_threads=True)

    @contextmanager
    def working_on(self, suspect: Suspect) -> Iterator[None]:
        """Hold, while the block runs, that this thread works on ``suspect``."""
        try:
            slot = self._free.popleft()
        except IndexError:
            yield
            return
        data = _THREAD.pack(threading.get_ident()) + suspect.encode()
        self._area[slot : slot + _SLOT_BYTES] = data.ljust(_SLOT_BYTES, b"\0")
        try:
            yield
        finally:
            self._area[slot : slot + _THREAD.size] = _FREE
            self._free.append(slot)


@dataclass(frozen=True, kw_only=True)
class AbandonedFile:
    """A file whose owner is gone; nobody else looks at it until it is left alone."""

    path: Path
    descriptor: int

    def crash(self) -> tuple[Suspect, ModelCrash] | None:
        """Return which model crashed the owner, None if it ended otherwise, or in code that is no model's."""
        with os.fdopen(os.dup(self.descriptor), "rb") as file:
            area, report = file.read(_AREA_BYTES), file.read(_MAX_REPORT_BYTES)
        reason = _REASON.search(report)
        suspect = _culprit(_suspects(area), report)
        if reason is None or suspect is None:
            return None
        at = datetime.fromtimestamp(os.fstat(self.descriptor).st_mtime, UTC)
        return suspect, ModelCrash(crash_id=self.path.name, at=at, reason=reason[1].decode())

    def remove(self) -> None:
        """Delete the file: what it tells is known, or nothing."""
        self.path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Let others look at it."""
        os.close(self.descriptor)


def _suspects(area: bytes) -> dict[int, Suspect]:
    """Return the models that were at work, by thread."""
    slots = (area[start : start + _SLOT_BYTES] for start in range(0, len(area), _SLOT_BYTES))
    return {
        _THREAD.unpack_from(slot)[0]: Suspect.decode(slot[_THREAD.size :])
        for slot in slots
        if not slot.startswith(_FREE)
    }


def _culprit(suspects: Mapping[int, Suspect], report: bytes) -> Suspect | None:
    named = _CULPRIT.search(report)
    if named is not None:
        return suspects.get(int(named[1], 16))
    if _CUT_SHORT.search(report) and len(suspects) == 1:
        return next(iter(suspects.values()))
    # A thread that runs no Python, as Ray has them: no model's.
    return None


def abandoned_files(folder: Path) -> Iterator[AbandonedFile]:
    """Yield the files in ``folder`` whose owners are gone; each is the caller's until it leaves it."""
    for path in sorted(folder.glob(f"{_PREFIX}*")):
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if _is_locked(path, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield AbandonedFile(path=path, descriptor=descriptor)
            else:
                os.close(descriptor)


def _locked_file(folder: Path) -> tuple[Path, int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(16)}"
        descriptor = os.open(path, flags, 0o600)
        if _is_locked(path, descriptor, fcntl.LOCK_EX):
            return path, descriptor
        # Between its making and its locking it looked abandoned, and was removed.
        os.close(descriptor)


def _is_locked(path: Path, descriptor: int, how: int) -> bool:
    """Lock the file; tell whether that worked and the name still leads to it."""
    try:
        fcntl.flock(descriptor, how)
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except (BlockingIOError, FileNotFoundError):
        return False
