"""Waiting for what another thread, or another task, brings about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

_LONGEST_S = 30


def wait_for(condition: Callable[[], Any]) -> None:
    """Return once ``condition`` holds."""
    deadline_s = time.monotonic() + _LONGEST_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.005)


async def until(condition: Callable[[], Any]) -> None:
    """Return once ``condition`` holds; the other tasks of this loop go on meanwhile."""
    async with asyncio.timeout(_LONGEST_S):
        while not condition():  # noqa: ASYNC110 -- a condition is no event
            await asyncio.sleep(0.001)
