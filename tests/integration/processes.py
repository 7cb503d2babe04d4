"""Finding and killing the processes of one platform, and of no other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from mixpeek_ray.cli.processes import descendants
from tests.integration.conftest import Platform, eventually


def pids(platform: Platform, title: str) -> list[int]:
    """Return the platform's processes whose command line begins with ``title``, as Ray titles its workers."""
    return [process.pid for process in descendants(platform.state["pid"]) if _title(process.pid).startswith(title)]


def kill(platform: Platform, title: str) -> int:
    """Kill -9 the one process with this title; return the process it was."""
    (pid,) = eventually(lambda: pids(platform, title), what=f"a process {title}")
    os.kill(pid, signal.SIGKILL)
    return pid


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended."""
    return not _title(pid)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
