"""Working folders on the node's disk that vanish with their owner, also when it is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def work_folder(spool_dir: str | None) -> Iterator[Path]:
    """Yield a fresh private folder (0700), removed on leaving; left-overs of killed processes go first.

    ``spool_dir``: where the folders lie; default: one of this user's in the system's temporary folder.
    """
    parent = Path(spool_dir) if spool_dir else Path(tempfile.gettempdir(), f"mixpeek-spool-{os.getuid()}")
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if parent.stat().st_uid != os.getuid():
        # Another user made a folder of that name in a place that everybody may write to.
        parent = Path(tempfile.mkdtemp(prefix="mixpeek-spool-"))
    folder, lock = _new_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _new_folder(parent: Path) -> tuple[Path, int]:
    """Return a new folder and the descriptor whose lock says that its owner lives, however that ends."""
    turn = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # One at a time: between its making and its locking a folder looks abandoned.
        fcntl.flock(turn, fcntl.LOCK_EX)
        _remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix="work-", dir=parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(turn)
    return folder, lock


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob("work-*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # its owner is removing it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its owner lives
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
