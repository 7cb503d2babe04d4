"""The supervisor over a head process that is a small Python program, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixpeek_ray.cli.processes import Process, descendants, is_alive, kill_left_over

# Runs the supervisor with `HEAD` in place of the real head module, one line of JSON per event.
SUPERVISE = """
import json, os, sys
from dataclasses import asdict
from pathlib import Path
from mixpeek_ray.cli import supervisor
supervisor._FIRST_BACKOFF_S = 0.01
supervisor.MAX_RESTARTS = 2
supervisor.HEAD_MODULE = ("-c", sys.argv[1])
head = supervisor.HeadCommand(arguments=sys.argv[2:], environment=os.environ, log=Path(os.devnull))
def show(event):
    print(json.dumps({"kind": type(event).__name__, **asdict(event)}), flush=True)
sys.exit(supervisor.Supervisor(head=head, on_event=show).run())
"""
READY = """
import os, subprocess, sys, time
from mixpeek_ray.cli.events import Failed, Progress, Ready, send
fd = int(sys.argv[1])
ready = Ready(api_url="u", dashboard_url="d", gcs_address="g")
"""
# A grandchild in a session of its own that ignores everything but SIGKILL, as a stuck worker would.
STUBBORN = """
import signal
code = "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (1, 2, 15)]; print(1, flush=True)"
code += "; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
"""


class Supervised:
    """A running supervisor."""

    def __init__(self, head: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, READY + head, *arguments], stdout=subprocess.PIPE, text=True
        )

    def event(self) -> dict[str, str]:
        """Return the next event."""
        assert self.process.stdout is not None
        found: dict[str, str] = json.loads(self.process.stdout.readline())
        return found

    def finish(self) -> int:
        """Return its exit status."""
        status = self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


def gone(processes: list[Process]) -> bool:
    """Tell whether all of them end soon."""
    deadline = time.monotonic() + 10
    while any(is_alive(process.pid) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_leaves_nothing(signum: int) -> None:
    supervised = Supervised(STUBBORN + "send(fd, ready); time.sleep(600)")
    assert supervised.event()["kind"] == "Ready"
    below = descendants(supervised.process.pid)
    assert len(below) == 2
    supervised.process.send_signal(signum)
    assert supervised.finish() == 0
    assert gone(below)


def test_a_head_that_cannot_start_is_not_tried_again() -> None:
    supervised = Supervised("send(fd, Progress(step='x')); send(fd, Failed(message='no way')); sys.exit(3)")
    assert supervised.event() == {"kind": "Progress", "step": "x"}
    assert supervised.event() == {"kind": "Failed", "message": "no way"}
    assert supervised.finish() == 1


def test_a_lost_head_is_started_again_but_not_for_ever() -> None:
    supervised = Supervised(STUBBORN + "send(fd, ready); os._exit(4)")
    kinds = [supervised.event()["kind"] for _ in range(6)]
    assert kinds == ["Ready", "Progress", "Ready", "Progress", "Ready", "Failed"]
    assert supervised.finish() == 1


def test_orphans_of_a_lost_head_are_gone_before_the_next_start(tmp_path: Path) -> None:
    head = """
mark = sys.argv[2]
if os.path.exists(mark):
    alive = os.path.exists(f"/proc/{open(mark).read()}/cmdline")
    send(fd, Failed(message=f"orphan alive: {alive}")); sys.exit(3)
open(mark, "w").write(str(child.pid)); send(fd, ready); os._exit(4)
"""
    supervised = Supervised(STUBBORN + head, str(tmp_path / "mark"))
    assert [supervised.event()["kind"] for _ in range(2)] == ["Ready", "Progress"]
    assert supervised.event()["step"] == "Restarting: orphan alive: False"
    supervised.process.terminate()
    supervised.finish()


def test_a_killed_supervisor_takes_a_head_that_asked_for_it_along() -> None:
    supervised = Supervised(
        "from mixpeek_ray.cli.processes import die_with_parent; die_with_parent(); send(fd, ready); time.sleep(600)"
    )
    assert supervised.event()["kind"] == "Ready"
    below = descendants(supervised.process.pid)
    supervised.process.kill()
    assert supervised.finish() == -signal.SIGKILL
    assert gone(below)


IDLE = "import time; print('ready', flush=True); time.sleep(600)"
# What `ray::DashboardAgent` looks like: a title of its own in place of its environment, and its log file open.
AGENT = "open('/proc/self/comm', 'w').write('ray::Agent'); log = open(__import__('sys').argv[1], 'w');" + IDLE


@contextlib.contextmanager
def idle(code: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that waits; it is gone afterwards."""
    with subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_leftovers_are_found_by_their_mark_or_by_their_title_and_files(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "ours-not"
    for folder in (ours, other):
        folder.mkdir()
    with (
        idle(IDLE, TEST_MARK=str(ours)) as marked,
        idle(IDLE, TEST_MARK=str(other)) as of_another_run,
        idle(AGENT, str(ours / "agent.log")) as agent,
        idle(AGENT, str(other / "agent.log")) as agent_of_another_run,
    ):
        assert kill_left_over(mark="TEST_MARK", scratch=ours) == 2
        assert marked.wait(timeout=10) == -signal.SIGKILL
        assert agent.wait(timeout=10) == -signal.SIGKILL
        assert of_another_run.poll() is None
        assert agent_of_another_run.poll() is None
