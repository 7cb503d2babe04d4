"""Keeps one head process alive: starts it, restarts it when it is lost, and ends everything below when told to."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixpeek_ray.cli.events import Event, EventReader, Failed, Progress, Ready
from mixpeek_ray.cli.processes import adopt_orphans, kill_descendants

# What a restart can cure, a few cure; more only hide a machine in trouble.
MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0
# What the Python of this environment runs as the head process.
HEAD_MODULE = ("-m", "mixpeek_ray.cli.head")
_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 30.0
# `ray.shutdown` takes 1.5 s; after this the rest is killed.
_STOP_GRACE_S = 8.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CHUNK_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class HeadCommand:
    """How the head process is started."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


class Supervisor:
    """Runs the platform in the calling process, which must have no threads and no children of its own."""

    def __init__(self, *, head: HeadCommand, on_event: Callable[[Event], None]) -> None:
        self._head = head
        self._on_event = on_event
        self._stopping = False
        self._was_ready = False
        self._restarts: list[float] = []
        self._wakeup, self._wakeup_write = os.pipe()

    def run(self) -> int:
        """Return 0 once told to stop, 1 when the platform could not be started or kept; nothing is left running."""
        adopt_orphans()
        self._install_signals()
        try:
            while True:
                failure = self._run_head()
                kill_descendants(os.getpid())
                if self._stopping:
                    return 0
                if not self._was_ready or not self._may_restart():
                    self._on_event(Failed(message=failure))
                    return 1
                self._on_event(Progress(step=f"Restarting: {failure}"))
                self._sleep(min(_FIRST_BACKOFF_S * 2 ** (len(self._restarts) - 1), _MAX_BACKOFF_S))
                if self._stopping:
                    return 0
        finally:
            kill_descendants(os.getpid())

    def _install_signals(self) -> None:
        os.set_blocking(self._wakeup_write, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        for signum in _STOP_SIGNALS:
            signal.signal(signum, self._note_stop)
        # `nohup` means what it says.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _note_stop(self, signum: int, frame: object) -> None:
        del signum, frame
        self._stopping = True

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._restarts = [moment for moment in self._restarts if now - moment < RESTART_WINDOW_S] + [now]
        return len(self._restarts) <= MAX_RESTARTS

    def _run_head(self) -> str:
        """Run one head process to its end; return why it ended."""
        events_read, events_write = os.pipe()
        with open(self._head.log, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *HEAD_MODULE, str(events_write), *self._head.arguments],
                env=dict(self._head.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(events_write,),
                # Ctrl-C reaches the supervisor alone, which stops the rest in order.
                start_new_session=True,
            )
        os.close(events_write)
        try:
            failure = self._follow(process, events_read)
        finally:
            os.close(events_read)
        self._end(process)
        return failure or f"The head process ended with status {process.returncode}: see {self._head.log}."

    def _follow(self, process: subprocess.Popen[bytes], events: int) -> str | None:
        """Pass on the head's events until it ends or a stop is asked for; return the failure it reported, if any."""
        reader = EventReader()
        failure: str | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            selector.register(events, selectors.EVENT_READ)
            while not self._stopping and not _has_ended(process):
                for key, _ in selector.select():
                    if key.fd == self._wakeup:
                        os.read(self._wakeup, _CHUNK_BYTES)
                        continue
                    data = os.read(events, _CHUNK_BYTES)
                    if not data:
                        selector.unregister(events)
                    for event in reader.feed(data):
                        if isinstance(event, Failed):
                            failure = event.message
                            continue
                        self._was_ready = self._was_ready or isinstance(event, Ready)
                        self._on_event(event)
        return failure

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if _has_ended(process):
            return
        process.terminate()
        deadline = time.monotonic() + _STOP_GRACE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            while not _has_ended(process) and time.monotonic() < deadline:
                if selector.select(max(0.0, deadline - time.monotonic())):
                    os.read(self._wakeup, _CHUNK_BYTES)
        if not _has_ended(process):
            process.kill()
            process.wait()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            while not self._stopping and (left := deadline - time.monotonic()) > 0:
                if selector.select(left):
                    os.read(self._wakeup, _CHUNK_BYTES)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Reap every child that has ended, adopted orphans included; tell whether the head is among the ended."""
    while process.returncode is None:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return False
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
    return True
