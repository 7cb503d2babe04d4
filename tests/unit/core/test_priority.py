"""What may wait computes at the lowest priority; what called for it does not."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from mixpeek_ray.core.priority import yield_to_answers


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_only_the_calling_thread_and_what_it_starts_yield():
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def yielding() -> None:
        yield_to_answers()
        found.append(niceness())
        below = threading.Thread(target=lambda: found.append(niceness()))
        below.start()
        below.join()

    found: list[int] = []
    before = niceness()
    thread = threading.Thread(target=yielding)
    thread.start()
    thread.join()
    assert found == [19, 19]
    assert niceness() == before
