"""What a process holds for itself, and giving back what it freed."""

from __future__ import annotations

import ctypes

from mixpeek_ray.core.limits import KIB


def private_bytes() -> int:
    """Return the anonymous memory of this process: neither files nor what the object store shares; 0 off Linux."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * KIB
    except FileNotFoundError:
        return 0
    return 0


def return_freed_memory() -> None:
    """Give back to the system what was freed; changes nothing where the allocator is not glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
