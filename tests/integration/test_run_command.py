"""The run command against a platform of its own: start, second start, faults, and nothing left at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mixpeek_ray.cli.processes import is_alive
from tests.integration.conftest import MIXPEEK_RAY, Platform, eventually

pytestmark = pytest.mark.timeout(600)


def processes_of(home: Path) -> dict[int, str]:
    """Return the live processes started for the platform in ``home``: id → command line."""
    wanted = f"MIXPEEK_HOME={home}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_alive(int(entry.name)):
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended while we looked
    return found


def pid_of(home: Path, text: str) -> int | None:
    """Return the platform's process with ``text`` on its command line."""
    return next((pid for pid, command in processes_of(home).items() if text in command), None)


def health(platform: Platform) -> str | None:
    """Return what the platform says of itself, or None when nothing sensible answers."""
    try:
        answer: dict[str, Any] = httpx.get(f"{platform.url}/v1/health", timeout=5).json()
    except (httpx.HTTPError, ValueError):
        return None
    return str(answer.get("status"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform that these tests may break; each leaves it healthy."""
    platform = Platform.prepare(tmp_path_factory.mktemp("run") / "home")
    platform.start()
    yield platform
    platform.stop()
    assert eventually(lambda: not processes_of(platform.home), what="every process gone")


def test_it_runs_behind_haproxy_on_loopback_with_private_files(running: Platform) -> None:
    answer = httpx.get(f"{running.url}/v1/health").json()
    assert answer["status"] == "OK"
    assert answer["meta"]["ingress"] == "haproxy"
    assert pid_of(running.home, "haproxy -db") is not None
    for name in ("dev-api-key", "ray-auth-token", "run.json", "env"):
        assert (running.home / name).stat().st_mode & 0o077 == 0, name
    assert running.home.stat().st_mode & 0o777 == 0o700


def test_status_tells_people_and_programs(running: Platform) -> None:
    shown = running.command("status", "--json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["health"] == "OK"
    assert running.url in running.command("status").stdout


def test_a_second_start_gives_one_sentence(running: Platform) -> None:
    refused = running.command("up", "--detach")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"already running at {running.url}" in refused.stderr
    assert health(running) == "OK"


def test_a_busy_port_gives_one_sentence(running: Platform, tmp_path: Path) -> None:
    other = Platform.prepare(tmp_path / "home", MIXPEEK_PORT=str(running.port))
    refused = other.command("up", "--detach")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"Port {running.port}" in refused.stderr
    assert "MIXPEEK_PORT=" in refused.stderr


def test_a_setting_out_of_range_is_named(tmp_path: Path) -> None:
    refused = Platform.prepare(tmp_path / "home", MIXPEEK_PORT="70000").command("up")
    assert refused.returncode == 2
    assert "MIXPEEK_PORT='70000'" in refused.stderr


def test_keys_are_created_listed_and_revoked(running: Platform) -> None:
    created = json.loads(running.command("keys", "create", "--name", "ci", "--role", "read", "--json").stdout)
    listed = json.loads(running.command("keys", "list", "--json").stdout)
    assert [key["role"] for key in listed if key["key_id"] == created["key_id"]] == ["read"]
    with running.client(created["api_key"]) as client:
        assert eventually(lambda: client.get("/v1/namespaces").status_code == 200, timeout_s=5)
        revoked = running.command("keys", "revoke", created["key_id"])
        assert revoked.returncode == 0, revoked.stderr
        assert eventually(lambda: client.get("/v1/namespaces").status_code == 401, timeout_s=5)
    unknown = running.command("keys", "revoke", "key_unknown")
    assert unknown.returncode == 1
    assert "key_unknown" in unknown.stderr


def test_a_second_shell_can_use_ray_and_serve_beside_another_platform(platform: Platform, running: Platform) -> None:
    assert platform.state["gcs_address"] != running.state["gcs_address"]
    scripts = Path(sys.executable).parent
    # Left to itself a job takes either of the two clusters on this machine, by chance: hence twice.
    submit = f""""{scripts}/ray" job submit -- sh -c 'echo job-on $RAY_ADDRESS'"""
    script = f'. "{running.home}/env" && "{scripts}/serve" status && {submit} && {submit}'
    bare = {name: value for name, value in running.environment.items() if not name.startswith("MIXPEEK_")}
    done = subprocess.run(["bash", "-c", script], env=bare, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"job-on {running.state['gcs_address']}") == 2


@pytest.mark.parametrize("header", ["x-request-disconnect-disabled: ?1", "x-request-timeout-seconds: -1"])
def test_callers_headers_hang_nobody(running: Platform, header: str) -> None:
    """Six 5 MB bodies that end half-way stalled a replica that honoured the header."""
    name, value = header.split(": ")
    with running.client() as client:
        senders = [threading.Thread(target=_send_half, args=(running.port, name, value), daemon=True) for _ in range(6)]
        for sender in senders:
            sender.start()
        for _ in range(10):
            assert client.get("/v1/health/liveness", timeout=2).status_code == 200
        for sender in senders:
            sender.join(timeout=60)
            assert not sender.is_alive()
        assert client.get("/v1/namespaces", headers={name: "0.000001"}, timeout=5).status_code == 200


def _send_half(port: int, name: str, value: str) -> None:
    def half() -> Iterator[bytes]:
        yield bytes(5_000_000)
        raise ConnectionAbortedError

    try:
        httpx.post(
            f"http://127.0.0.1:{port}/v1/namespaces/ns_x/models",
            content=half(),
            headers={name: value, "Content-Length": "10000000", "Content-Type": "multipart/form-data; boundary=b"},
        )
    except (ConnectionAbortedError, httpx.HTTPError):
        return


def test_a_killed_haproxy_comes_back(running: Platform) -> None:
    pid = pid_of(running.home, "haproxy -db")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: health(running) == "OK", timeout_s=30, what="HAProxy back")
    assert pid_of(running.home, "haproxy -db") != pid


def test_a_killed_haproxy_manager_leaves_no_orphan_on_the_port(running: Platform) -> None:
    haproxy, manager = pid_of(running.home, "haproxy -db"), pid_of(running.home, "ray::HAProxyManager")
    assert haproxy is not None
    assert manager is not None
    os.kill(manager, signal.SIGKILL)
    eventually(lambda: not is_alive(haproxy), timeout_s=10, what="HAProxy gone with its manager")
    eventually(lambda: health(running) == "OK", timeout_s=30, what="HAProxy back")


def test_losing_ray_restarts_the_platform(running: Platform) -> None:
    supervisor, gcs = running.state["pid"], pid_of(running.home, "gcs_server")
    assert gcs is not None
    before = running.state["gcs_address"]
    os.kill(gcs, signal.SIGKILL)
    eventually(lambda: running.state["gcs_address"] != before, timeout_s=180, what="a new cluster")
    assert health(running) == "OK"
    assert running.state["pid"] == supervisor
    with running.client() as client:
        assert client.get("/v1/namespaces").status_code == 200


def test_a_killed_supervisor_leaves_nothing_to_the_next_start(running: Platform) -> None:
    before = processes_of(running.home)
    os.kill(running.state["pid"], signal.SIGKILL)
    eventually(lambda: health(running) is None, what="the ingress gone")
    assert running.command("status").returncode == 1
    running.start()
    assert health(running) == "OK"
    assert not [command for pid, command in before.items() if is_alive(pid)]


def test_stopping_twice_is_no_error(tmp_path: Path) -> None:
    platform = Platform.prepare(tmp_path / "home")
    stopped = platform.command("down")
    assert stopped.returncode == 0
    assert "No platform runs" in stopped.stdout


def test_ctrl_c_stops_everything_quickly(tmp_path: Path) -> None:
    platform = Platform.prepare(tmp_path / "home")
    process = subprocess.Popen(
        [str(MIXPEEK_RAY), "up"],
        env=platform.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Starting Serve" in line:
            break
    # In the middle of the start, where most is half done.
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert time.monotonic() - started < 15
    process.stdout.close()
    assert eventually(lambda: not processes_of(platform.home), what="every process gone")
