"""Files that all workers of a node share: made once from what the object store holds, gone when nobody uses them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mixpeek_ray.core.node_folder import node_folder_of
from mixpeek_ray.core.settings import get_settings

# A model's files outlive its last user by this much, so that workers that come and go find them made.
_UNUSED_S = 900.0
# The folder inside each entry; a sibling of it is the lock, so that the files are the model's and nothing else.
_FILES = "files"


class NodeFolder:
    """A folder of files that stays as it is for as long as this object lives."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        weakref.finalize(self, _release, lock)


# What users in this process hold: one lock for all of them, by the entry.
_held: weakref.WeakValueDictionary[Path, NodeFolder] = weakref.WeakValueDictionary()


def node_folder(key: str, build: Callable[[Path], None]) -> NodeFolder:
    """Return the node's folder for ``key``, filled by ``build`` where it is not there yet.

    Of all processes of the node one builds and the others wait; a build that fails or dies leaves nothing, and the
    next caller builds again. ``key``: a plain file name that changes whenever the content would (a hash, with what else
    it depends on). Raises what ``build`` raises.
    """
    parent = node_folder_of(get_settings(), "models")
    entry = parent / key
    files = entry / _FILES
    held = _held.get(entry)
    if held is not None:
        return held
    while True:
        entry.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # swept since
        try:
            if not files.exists() and _is_mine_to_fill(entry, lock):
                _fill(entry, build)
            # Waits for whoever fills it; to wait for the exclusive lock would be to wait for all who use it, too.
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_there(entry, lock) and files.exists():
                os.utime(entry)
                _sweep(parent)
                _held[entry] = folder = NodeFolder(files, lock)
                return folder
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _release(lock: int) -> None:
    """Let the folder be swept, some time from now."""
    try:
        with suppress(OSError):
            os.utime(lock)
    finally:
        os.close(lock)


def _fill(entry: Path, build: Callable[[Path], None]) -> None:
    for left_over in entry.iterdir():
        shutil.rmtree(left_over)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=entry))
    try:
        build(partial)
        partial.rename(entry / _FILES)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_mine_to_fill(entry: Path, lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_there(entry, lock) and not (entry / _FILES).exists()


def _is_there(entry: Path, lock: int) -> bool:
    """Tell whether the folder that is locked is still the one that the name leads to."""
    try:
        return os.path.samestat(entry.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _sweep(parent: Path) -> None:
    """Remove what nobody holds and nobody has asked for lately."""
    for entry in parent.iterdir():
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime < _UNUSED_S:
                continue
            lock = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry)
            finally:
                os.close(lock)
