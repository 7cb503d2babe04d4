"""``mixpeek-ray down``: stop the platform that runs in this home, completely."""

from __future__ import annotations

import os
import signal
import time

import typer

from mixpeek_ray.cli import state
from mixpeek_ray.cli.environment import MARK
from mixpeek_ray.cli.paths import RunPaths
from mixpeek_ray.cli.processes import kill_left_over
from mixpeek_ray.core.settings import Settings

# The supervisor needs at most its own grace (8 s) and the time to kill what is left.
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05


def down(settings: Settings) -> int:
    """Stop the platform and return the exit status; no platform is no error."""
    paths = RunPaths.of(settings.home_path)
    if not state.is_locked(paths):
        kill_left_over(mark=MARK, scratch=paths.scratch)
        typer.echo(f"No platform runs in {paths.home}.")
        return 0
    supervisor = state.lock_holder(paths)
    if supervisor is None:
        typer.echo(f"A platform is just starting in {paths.home}: try again in a moment.", err=True)
        return 1
    _signal(supervisor, signal.SIGTERM)
    if not _wait_for_end(paths):
        # Everything below dies with it.
        _signal(supervisor, signal.SIGKILL)
        if not _wait_for_end(paths):
            typer.echo(f"Process {supervisor} does not end: look at {paths.log}.", err=True)
            return 1
    kill_left_over(mark=MARK, scratch=paths.scratch)
    typer.echo("Stopped.")
    return 0


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def _wait_for_end(paths: RunPaths) -> bool:
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while state.is_locked(paths):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
