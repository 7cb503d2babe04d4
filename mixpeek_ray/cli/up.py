"""``mixpeek-ray up``: check the machine, then start the platform here or in the background."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import deployments
from mixpeek_ray.cli import environment, preflight, state
from mixpeek_ray.cli.events import Event, EventReader, Failed, Ready, send
from mixpeek_ray.cli.paths import RunPaths, prepare
from mixpeek_ray.cli.processes import kill_left_over
from mixpeek_ray.cli.reporter import Reporter
from mixpeek_ray.cli.supervisor import HeadCommand, Supervisor
from mixpeek_ray.core.settings import Settings

_UMASK = 0o077
# Ray's logs of the last run are worth keeping for a look after a crash; older ones only fill the disk.
_KEPT_SESSIONS = 1
_CHUNK_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A machine that passed every check; ``lock`` holds the home."""

    lock: int
    config: Path
    # None: Ray's own choice.
    object_store_bytes: int | None


def up(settings: Settings, *, detach: bool) -> int:
    """Run the platform until it is stopped (or, detached, until it is ready); return the exit status."""
    os.umask(_UMASK)
    reporter = Reporter(settings)
    paths = RunPaths.of(settings.home_path)
    prepared = _prepare(settings, paths)
    if isinstance(prepared, str):
        reporter.failed(prepared)
        return 1
    command = _head_command(settings, paths, prepared)
    if detach:
        return _detached(paths, command, prepared.lock, reporter)
    return _supervise(paths, command, prepared.lock, reporter.event)


def _prepare(settings: Settings, paths: RunPaths) -> _Prepared | str:
    """Return what the start needs, or the sentence that says why it cannot be."""
    problem = prepare(paths)
    if problem is not None:
        return problem
    lock = state.try_lock(paths)
    if lock is None:
        return _already_running(paths)
    config = Path(deployments.__file__).parent.parent / "serve_config.yaml"
    if not config.is_file():
        return "serve_config.yaml is missing beside the package `deployments`: run from a checkout of the project."
    # A killed run's processes may still hold the port that is checked next.
    kill_left_over(mark=environment.MARK, scratch=paths.scratch)
    problem = preflight.check_port(settings) or preflight.check_disk(paths) or preflight.check_models(settings)
    if problem is not None:
        return problem
    plan = preflight.object_store_plan(settings)
    if isinstance(plan, str):
        return plan
    return _Prepared(lock=lock, config=config, object_store_bytes=plan)


def _already_running(paths: RunPaths) -> str:
    running = state.read_state(paths)
    where = f" at {running.api_url} (process {running.pid})" if running else ""
    return (
        f"A platform is already running{where} in {paths.home}: stop it with `mixpeek-ray down`, or choose another "
        "MIXPEEK_HOME and MIXPEEK_PORT."
    )


def _head_command(settings: Settings, paths: RunPaths, prepared: _Prepared) -> HeadCommand:
    _prune_sessions(paths)
    state.clear_state(paths)
    state.ensure_token(paths)
    paths.haproxy.mkdir(exist_ok=True)
    binary = environment.haproxy_binary()
    if binary is not None:
        environment.write_haproxy_script(paths, settings, binary)
    variables = environment.platform_environment(
        os.environ, settings=settings, paths=paths, ports=environment.PortBlock.pick(), haproxy=binary is not None
    )
    size = "-" if prepared.object_store_bytes is None else str(prepared.object_store_bytes)
    return HeadCommand(arguments=(size, str(prepared.config)), environment=variables, log=paths.log)


def _prune_sessions(paths: RunPaths) -> None:
    sessions = sorted(path for path in paths.ray_sessions.glob("session_2*") if not path.is_symlink())
    for session in sessions[:-_KEPT_SESSIONS]:
        shutil.rmtree(session, ignore_errors=True)


def _supervise(paths: RunPaths, command: HeadCommand, lock: int, report: Callable[[Event], None]) -> int:
    state.mark_holder(lock)

    def on_event(event: Event) -> None:
        if isinstance(event, Ready):
            _write_run_files(paths, event)
        report(event)

    try:
        return Supervisor(head=command, on_event=on_event).run()
    finally:
        state.clear_state(paths)


def _write_run_files(paths: RunPaths, ready: Ready) -> None:
    state.write_exports(paths, environment.shell_exports(paths, ready))
    state.write_state(
        paths,
        state.RunState(
            pid=os.getpid(), api_url=ready.api_url, dashboard_url=ready.dashboard_url, gcs_address=ready.gcs_address
        ),
    )


def _detached(paths: RunPaths, command: HeadCommand, lock: int, reporter: Reporter) -> int:
    events_read, events_write = os.pipe()
    if os.fork() == 0:
        os.close(events_read)
        os._exit(_background(paths, command, lock, events_write, reporter))
    os.close(events_write)
    reader = EventReader()
    while data := os.read(events_read, _CHUNK_BYTES):
        for event in reader.feed(data):
            reporter.event(event)
            if isinstance(event, Ready):
                return 0
            if isinstance(event, Failed):
                return 1
    reporter.failed(f"The platform ended while it started: see {paths.log}.")
    return 1


def _background(paths: RunPaths, command: HeadCommand, lock: int, events: int, reporter: Reporter) -> int:
    """Run the supervisor away from the terminal, in a session of its own; return its exit status."""
    os.setsid()
    with open(paths.log, "ab") as log, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())

    def report(event: Event) -> None:
        send(events, event)
        # By now standard output is the log, where restarts are looked up later.
        reporter.event(event)

    return _supervise(paths, command, lock, report)
