"""A server with many models, seen from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.pool.counters import Counters
from mixpeek_ray.cli.processes import descendants

_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that is up; its models are known by their numbers."""

    name: str
    port: int
    # The first of its processes.
    pid: int
    # Names and values.
    headers: Sequence[tuple[str, str]]
    # Returns the path and the JSON document of a call to a model.
    call: Callable[[int], tuple[str, str]]
    # Makes a model answer.
    load: Callable[[int], None]
    # Returns what it has counted so far; None: what was loaded stays.
    counters: Callable[[], Counters] | None = None

    def ask(self, number: int) -> None:
        """Call a model once; fail unless it answers."""
        path, body = self.call(number)
        headers = {"Content-Type": "application/json", **dict(self.headers)}
        answer = httpx.post(f"http://127.0.0.1:{self.port}{path}", content=body, headers=headers, timeout=_TIMEOUT_S)
        assert answer.is_success, answer.text

    def memory(self) -> int:
        """Return the bytes that its processes hold, mapped files among them, and the machine's shared memory."""
        pids = [self.pid, *(process.pid for process in descendants(self.pid))]
        held = sum(_field(f"/proc/{pid}/status", kind) for pid in pids for kind in ("RssAnon", "RssFile"))
        return held + _field("/proc/meminfo", "Shmem")


def _field(path: str, name: str) -> int:
    """Return a field of a file of the kernel's, in bytes; 0 if the process has ended."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
