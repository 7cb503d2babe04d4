"""What may wait: uploads' checks and deploys leave the processors to answers."""

from __future__ import annotations

import os
import threading

# The lowest there is. Ray's workers, which answer, run at 15: where both want a core, those get two thirds
# of it or more.
_NICENESS = 19


def yield_to_answers() -> None:
    """Let the calling thread, and the threads and processes that it starts, compute when nobody else wants to.

    For good: a process may lower its priority, and not raise it again.
    """
    if hasattr(os, "setpriority"):
        # Linux has a priority for each thread.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
