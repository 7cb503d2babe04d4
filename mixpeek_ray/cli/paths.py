"""Where the run command keeps things on this machine."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

# Not the system's temporary folder, which may be long: HAProxy and Ray put Unix sockets below, and HAProxy takes paths
# of 97 bytes at most, of which Serve's own folder names use 70.
_SCRATCH_PARENT = Path("/tmp")  # noqa: S108  # made private (0700, owner checked) before use
_PRIVATE = 0o700


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """The run command's files: ``home`` is kept, ``scratch`` holds sockets and Ray's sessions and may vanish."""

    home: Path
    scratch: Path

    @classmethod
    def of(cls, home: Path) -> RunPaths:
        """Return the paths of the platform whose absolute home is ``home``."""
        digest = hashlib.sha256(str(home).encode()).hexdigest()[:8]
        return cls(home=home, scratch=_SCRATCH_PARENT / f"mixpeek-{digest}")

    @property
    def lock(self) -> Path:
        """Locked as long as a platform runs in this home."""
        return self.home / "run.lock"

    @property
    def state(self) -> Path:
        """What runs, for other commands."""
        return self.home / "run.json"

    @property
    def exports(self) -> Path:
        """What a second shell sources."""
        return self.home / "env"

    @property
    def token(self) -> Path:
        """The Ray cluster's token."""
        return self.home / "ray-auth-token"

    @property
    def log(self) -> Path:
        """What the platform's processes print."""
        return self.home / "logs" / "platform.log"

    @property
    def ray_sessions(self) -> Path:
        """Ray's temporary folder: one folder a session."""
        return self.scratch / "ray"

    @property
    def haproxy(self) -> Path:
        """HAProxy's configuration, sockets and state."""
        return self.scratch / "ha"

    @property
    def haproxy_script(self) -> Path:
        """What Serve runs as its HAProxy binary."""
        return self.scratch / "run-haproxy"


def prepare(paths: RunPaths) -> str | None:
    """Make the folders, private to this user; return what is in the way, or None."""
    for folder in (paths.home, paths.log.parent, paths.scratch):
        problem = _private_folder(folder)
        if problem is not None:
            return problem
    return None


def _private_folder(folder: Path) -> str | None:
    try:
        folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return f"{folder} is not a folder of this user: remove it, or choose another MIXPEEK_HOME."
        folder.chmod(_PRIVATE)
        probe = folder / ".write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror}): choose another folder with MIXPEEK_HOME."
    return None
