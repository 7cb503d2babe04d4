"""What a running platform takes of its machine: memory, processes, descriptors, files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixpeek_ray.cli.processes import descendants

# Prints the bytes that live objects take in the cluster's object stores.
_OBJECT_STORE = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(int(sum(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"])
          - ray.available_resources().get("object_store_memory", 0)))
"""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of a platform."""

    title: str
    anonymous_bytes: int
    descriptors: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A moment's figures."""

    object_store_bytes: int
    # By process id.
    processes: Mapping[int, Process]
    files: frozenset[str]

    @classmethod
    def of(cls, supervisor: int, environment: Mapping[str, str], folders: Iterable[Path]) -> Footprint:
        """Return that of the platform whose first process is ``supervisor``, with the files in ``folders``.

        ``environment``: the variables that make a process part of its cluster.
        """
        found = {process.pid: _process(process.pid) for process in descendants(supervisor)}
        return cls(
            object_store_bytes=_object_store_bytes(environment),
            processes={pid: process for pid, process in found.items() if process is not None},
            files=frozenset(str(path) for folder in folders for path in folder.rglob("*") if path.is_file()),
        )

    def common(self, other: Footprint) -> list[tuple[Process, Process]]:
        """Return the processes that both moments have, each as it was in this and in the other."""
        return [(self.processes[pid], other.processes[pid]) for pid in self.processes.keys() & other.processes.keys()]


def _process(pid: int) -> Process | None:
    """Return a process's figures, None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    anonymous = sum(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
    return Process(title=title.strip(), anonymous_bytes=anonymous, descriptors=descriptors)


def _object_store_bytes(environment: Mapping[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _OBJECT_STORE],
        env=os.environ | dict(environment),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])
