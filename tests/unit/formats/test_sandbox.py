"""The sandbox's limits hold, and nothing that happens in it reaches the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mixpeek_ray.core.errors import DecompressionLimitError, FormatMismatchError, InvalidWeightsError
from mixpeek_ray.core.limits import MIB
from mixpeek_ray.core.records import FileInfo, ModelFormat
from mixpeek_ray.formats import sandbox
from mixpeek_ray.formats.inspect import _inspect
from mixpeek_ray.formats.sandbox import run_limited
from mixpeek_ray.formats.tensors import check_state_dict

MEMORY = 64 * MIB


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_returns_the_result_from_another_process() -> None:
    assert run_limited(max, 3, 7, memory_bytes=MEMORY, seconds=10) == 7
    assert run_limited(os.getpid, memory_bytes=MEMORY, seconds=10) != os.getpid()


def test_a_call_costs_milliseconds_once_the_server_runs() -> None:
    run_limited(len, "", memory_bytes=MEMORY, seconds=10)
    started = time.perf_counter()
    for _ in range(10):
        run_limited(len, "", memory_bytes=MEMORY, seconds=10)
    # 15 ms each when measured alone; importing torch would take over a second each.
    assert (time.perf_counter() - started) / 10 < 0.3


def test_errors_come_back_as_they_were_raised() -> None:
    with pytest.raises(FormatMismatchError, match="not a state_dict"):
        run_limited(check_state_dict, [], memory_bytes=MEMORY, seconds=10)


def test_memory_is_limited() -> None:
    assert run_limited(len, bytes(MIB), memory_bytes=MEMORY, seconds=10) == MIB
    with pytest.raises(InvalidWeightsError, match="memory"):
        run_limited(bytearray, 2 * MEMORY, memory_bytes=MEMORY, seconds=10)


def test_time_is_limited() -> None:
    started = time.monotonic()
    with pytest.raises(DecompressionLimitError, match="longer"):
        run_limited(time.sleep, 60, memory_bytes=MEMORY, seconds=0.2)
    assert time.monotonic() - started < 10


def test_files_are_limited(tmp_path: Path) -> None:
    target = tmp_path / "big"
    with pytest.raises(Exception, match="disk"):
        run_limited(Path.write_bytes, target, bytes(2 * MIB), memory_bytes=MEMORY, seconds=10, file_bytes=MIB)
    assert target.stat().st_size <= MIB


@pytest.mark.parametrize("crash", [(os.abort,), (os._exit, 3), (os.kill, 0, signal.SIGKILL)])
def test_a_crash_is_an_error(crash: tuple[Callable[..., object], object]) -> None:
    with pytest.raises(InvalidWeightsError, match="crashes"):
        run_limited(*crash, memory_bytes=MEMORY, seconds=10)
    assert run_limited(len, "abc", memory_bytes=MEMORY, seconds=10) == 3


def test_an_unforeseen_exception_is_the_files_fault() -> None:
    with pytest.raises(InvalidWeightsError) as caught:
        run_limited(int, "not a number", memory_bytes=MEMORY, seconds=10)
    assert "number" not in caught.value.message


def test_a_reply_of_other_classes_is_not_read() -> None:
    # What a child says is not trusted: it may have been taken over.
    with pytest.raises(InvalidWeightsError, match="crashes"):
        run_limited(Path, "x", memory_bytes=MEMORY, seconds=10)


def test_calls_run_side_by_side() -> None:
    run_limited(len, "", memory_bytes=MEMORY, seconds=10)
    threads = [
        threading.Thread(target=run_limited, args=(time.sleep, 0.5), kwargs={"memory_bytes": MEMORY, "seconds": 10})
        for _ in range(8)
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 3.0


def test_a_server_started_early_serves_the_first_call() -> None:
    sandbox._server.stop()
    sandbox.start_early()
    early = sandbox._server._process
    sandbox.start_early()
    assert early is not None
    assert run_limited(os.getppid, memory_bytes=MEMORY, seconds=10) == early.pid


def test_a_server_that_died_is_started_early_too() -> None:
    sandbox.start_early()
    dead = sandbox._server._process
    assert dead is not None
    dead.kill()
    # Not Popen.wait: what is tested has to notice by itself.
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    sandbox.start_early()
    early = sandbox._server._process
    assert early is not None
    assert run_limited(os.getppid, memory_bytes=MEMORY, seconds=10) == early.pid != dead.pid


def test_a_lost_server_is_started_again() -> None:
    server_pid = run_limited(os.getppid, memory_bytes=MEMORY, seconds=10)
    os.kill(server_pid, signal.SIGKILL)
    assert run_limited(os.getppid, memory_bytes=MEMORY, seconds=10) != server_pid


def test_secrets_of_the_environment_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    sandbox._server.stop()
    assert run_limited(os.getenv, "AWS_SECRET_ACCESS_KEY", memory_bytes=MEMORY, seconds=10) is None


CALLER = """
import os, sys, threading, time
from mixpeek_ray.formats.sandbox import run_limited
if __name__ == "__main__":
    limits = {"memory_bytes": 2**26, "seconds": 60}
    print(run_limited(os.getppid, **limits), flush=True)
    threading.Thread(target=run_limited, args=(time.sleep, 60), kwargs=limits, daemon=True).start()
    sys.stdin.read()
else:
    raise SystemExit("imported again")
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("victim", ["caller", "server"])
def test_nothing_outlives_its_parent(victim: str, tmp_path: Path) -> None:
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        server_pid = int(caller.stdout.readline())
        wait_until(lambda: bool(children(server_pid)))
        (child_pid,) = children(server_pid)
        os.kill(caller.pid if victim == "caller" else server_pid, signal.SIGKILL)
        wait_until(lambda: not is_running(server_pid) and not is_running(child_pid))
        caller.kill()


def test_checks_fit_their_limits(torch_file: Callable[..., bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(torch_file({f"layer.{i}": torch.zeros(256, 256) for i in range(200)}))
    files = (FileInfo(path=path.name, size_bytes=path.stat().st_size),)
    memory_bytes = path.stat().st_size + 32 * MIB
    found = run_limited(_inspect, ModelFormat.PYTORCH, tmp_path, files, memory_bytes=memory_bytes, seconds=30)
    assert sum(found.index.storage_sizes) == 200 * 256 * 256 * 4
