"""What other commands know about the running platform: its lock, its state and the exports for a second shell."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.core.private_files import write_private

_TOKEN_BYTES = 32
_PRIVATE_FILE = 0o600
# Another command that only looks holds the lock for a moment.
_LOCK_ATTEMPTS = 5
_LOCK_RETRY_S = 0.05


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The platform that runs in a home, once it is ready."""

    pid: int
    api_url: str
    dashboard_url: str
    gcs_address: str


def try_lock(paths: RunPaths) -> int | None:
    """Take the home's lock and return its descriptor, which holds it until closed; None if a platform has it."""
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_RETRY_S)
        else:
            return fd
    os.close(fd)
    return None


def mark_holder(lock: int) -> None:
    """Write this process's id into the lock that it holds."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def lock_holder(paths: RunPaths) -> int | None:
    """Return the process that holds the home's lock, or None when none does or it has not said so yet."""
    text = paths.lock.read_text() if is_locked(paths) else ""
    return int(text) if text else None


def is_locked(paths: RunPaths) -> bool:
    """Tell whether a platform runs in this home."""
    if not paths.lock.exists():
        return False
    with paths.lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def write_state(paths: RunPaths, state: RunState) -> None:
    """Replace the home's run state."""
    write_private(paths.state, (json.dumps(asdict(state), indent=2) + "\n").encode())


def read_state(paths: RunPaths) -> RunState | None:
    """Return the state of the platform that runs in this home, or None when none does."""
    if not is_locked(paths):
        return None
    try:
        return RunState(**json.loads(paths.state.read_text()))
    except FileNotFoundError:
        return None


def clear_state(paths: RunPaths) -> None:
    """Remove what described a platform that has ended."""
    for file in (paths.state, paths.exports):
        file.unlink(missing_ok=True)


def write_exports(paths: RunPaths, variables: Mapping[str, str]) -> None:
    """Write the shell file that makes a second shell a part of this platform."""
    lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    write_private(paths.exports, lines.encode())


def ensure_token(paths: RunPaths) -> None:
    """Make the Ray cluster's token unless there is one."""
    if not paths.token.exists():
        write_private(paths.token, secrets.token_hex(_TOKEN_BYTES).encode())
