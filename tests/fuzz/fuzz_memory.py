"""How much memory a sandboxed call takes, told by the child itself."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixpeek_ray.core.errors import MixpeekError


def measured(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Return what the function returns or refuses with, and how many bytes more than at its start it held at most."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    try:
        result = function(*arguments)
    except MixpeekError as error:
        result = error
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - pages * resource.getpagesize()
