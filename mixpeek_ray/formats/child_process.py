"""Python processes that share nothing with this one but a socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence


def start_child(
    bootstrap: str, channel: socket.socket, *, kept: Sequence[str], fixed: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Return a new process that runs ``bootstrap``, a line of Python, with ``channel``'s descriptor as its argument.

    Of the environment it has the variables named in ``kept``, those of ``fixed``, and the path that modules come from:
    no setting and no secret.
    """
    inherited = {name: os.environ[name] for name in kept if name in os.environ}
    return subprocess.Popen(
        # -P: never import from the working directory.
        [sys.executable, "-P", "-c", bootstrap, str(channel.fileno())],
        pass_fds=(channel.fileno(),),
        env={**inherited, **(fixed or {}), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Ctrl-C is for the caller, which may still want an answer. Not a new session: Linux would give that the same
        # share of the processors as all of the platform.
        process_group=0,
    )
